<?php

declare(strict_types=1);

// The hub asks this script whose a connection is, with the cookies of whoever connects. No browser needs it.
// `read_and_close` gives the session's lock back at once: a slow page of the same user holds nobody up.
session_start(['read_and_close' => true]);

if (!isset($_SESSION['user'])) {
    // Anything but a 2xx with a user is a no.
    http_response_code(401);
    exit;
}
header('Content-Type: application/json');
echo json_encode(['user_id' => $_SESSION['user'], 'user_info' => ['name' => ucfirst($_SESSION['user'])]]);
