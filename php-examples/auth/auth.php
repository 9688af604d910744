<?php

declare(strict_types=1);

/*
 * A site with a login, whose WebSockets know who is logged in: nginx, php-fpm, and the hub, which is this process.
 *
 *     php -d extension=$PWD/build/realtime.so php-examples/auth/auth.php
 *
 * Starts all three on one port (HTTP_PORT, 8000 if it is not set) and stops them on Ctrl-C. What matters is the hub's
 * configuration below and public/realtime-auth.php, which the hub asks whose a connection is.
 */

require __DIR__ . '/../site.php';

if (!function_exists('Realtime\serve')) {
    fwrite(STDERR, "the realtime extension is not loaded: add -d extension=\$PWD/build/realtime.so\n");
    exit(1);
}

$port = (int) (getenv('HTTP_PORT') ?: 8000);
$directory = sys_get_temp_dir() . '/realtime-auth-' . bin2hex(random_bytes(6));
mkdir($directory, 0700);
$root = __DIR__ . '/public';

// The hub: it shows the session's cookie of whoever connects to a script in the pool, and the script says whose it is.
$hub = Realtime\start([
    'listen' => '127.0.0.1:0',
    'socket' => "$directory/hub.sock",
    'auth' => [
        'mode' => 'callback',
        'callback' => [
            'fastcgi' => ['socket' => "$directory/fpm.sock", 'script' => "$root/realtime-auth.php"],
            'cookies' => ['PHPSESSID'],
            // Below the pool's max_children: however many connect, a worker is left for the site.
            'max_in_flight' => 3,
        ],
    ],
]);

$what = 'and log in under any name; Ctrl-C stops the site';
exit(serve_site($hub, $port, $root, $directory, $what, "php_admin_value[session.save_path] = $directory"));
