<?php

declare(strict_types=1);

/*
 * A chat as a usual PHP site runs: nginx, php-fpm, and the hub as a process of its own, which is this one.
 *
 *     php -d extension=$PWD/build/realtime.so php-examples/chat/chat.php
 *
 * Starts all three on one port (HTTP_PORT, 8000 if it is not set) and stops them on Ctrl-C. What matters is in
 * public/index.php and in the configurations of nginx and php-fpm in ../site.php.
 */

require __DIR__ . '/../site.php';

if (!function_exists('Realtime\serve')) {
    fwrite(STDERR, "the realtime extension is not loaded: add -d extension=\$PWD/build/realtime.so\n");
    exit(1);
}

$port = (int) (getenv('HTTP_PORT') ?: 8000);
$directory = sys_get_temp_dir() . '/realtime-chat-' . bin2hex(random_bytes(6));
mkdir($directory, 0700);
$root = __DIR__ . '/public';

// The hub: its WebSockets stand behind nginx, its bus socket is where the workers find it.
$hub = Realtime\start(['listen' => '127.0.0.1:0', 'socket' => "$directory/hub.sock"]);

exit(serve_site($hub, $port, $root, $directory, 'in two windows; Ctrl-C stops the chat'));
