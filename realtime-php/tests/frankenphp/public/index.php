<?php

/**
 * A request of the tests, in classic mode and as a worker: answers with its number in the script's life and what it did.
 *
 *   ?text=…        broadcasts it on `load`
 *   ?leave=WHAT    leaves behind what the end of a request has to clear
 */

declare(strict_types=1);

$served = 0;
$worker = isset($_SERVER['FRANKENPHP_WORKER']);
$answer = function () use (&$served, $worker): void {
    $served++;
    if (isset($_GET['text'])) {
        broadcast('load', $_GET['text']);
    }
    match ($_GET['leave'] ?? null) {
        'off' => Realtime\off(),
        'fake' => Realtime\Testing\fake(),
        // An unfinished batch; as a worker the script ends and FrankenPHP starts it again.
        'exit' => Realtime\batch(fn () => [broadcast('load', 'never'), exit()]),
        'throw' => Realtime\batch(fn () => [broadcast('load', 'never'), throw new DomainException('out')]),
        null => null,
    };
    echo json_encode(['served' => $served, 'pid' => getmypid(), 'sapi' => PHP_SAPI, 'worker' => $worker]);
};

if ($worker) {
    while (frankenphp_handle_request($answer)) {
    }
} else {
    $answer();
}
