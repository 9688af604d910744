<?php

/**
 * nginx and php-fpm before a hub, as examples need them: the configurations of both, and their start and end. A site would have
 * systemd start them.
 */

declare(strict_types=1);

/**
 * Serves `$root/index.php` and the hub's `/ws` on one port until Ctrl-C; the exit status. `$directory` is for sockets and logs,
 * has the hub's bus socket `hub.sock`, and is removed. `$settings` are further lines of the pool; `$what` says what to do with
 * the page.
 */
function serve_site(Realtime\Hub $hub, int $port, string $root, string $directory, string $what, string $settings = ''): int
{
    $isRoot = is_writable('/proc/self/oom_score_adj') && fileowner('/proc/self') === 0;
    // PHP-FPM: the options that this process was started with (the extension is one), and where the hub is.
    $arguments = explode("\0", file_get_contents('/proc/self/cmdline'));
    $options = array_slice($arguments, 1, array_search($_SERVER['argv'][0], $arguments, true) - 1);
    $userOfPool = $isRoot ? "user = root\ngroup = root" : '';
    file_put_contents("$directory/fpm.conf", <<<FPM
        [global]
        daemonize = no
        error_log = $directory/fpm.log
        [site]
        $userOfPool
        listen = $directory/fpm.sock
        pm = static
        pm.max_children = 4
        php_admin_value[realtime.socket] = $directory/hub.sock
        $settings
        FPM);

    // nginx: the site and /ws on one port, so that the page needs to know no other.
    $userOfServer = $isRoot ? 'user root;' : '';
    file_put_contents("$directory/nginx.conf", <<<NGINX
        $userOfServer
        daemon off;
        pid $directory/nginx.pid;
        events {}
        http {
            access_log off;
            client_body_temp_path $directory/body;
            proxy_temp_path $directory/proxy;
            fastcgi_temp_path $directory/fastcgi;
            uwsgi_temp_path $directory/uwsgi;
            scgi_temp_path $directory/scgi;
            server {
                listen 127.0.0.1:$port;
                location /ws {
                    proxy_pass http://127.0.0.1:{$hub->port};
                    proxy_http_version 1.1;
                    proxy_set_header Upgrade \$http_upgrade;
                    proxy_set_header Connection upgrade;
                    proxy_set_header Host \$http_host;
                }
                location / {
                    include /etc/nginx/fastcgi_params;
                    fastcgi_param SCRIPT_FILENAME $root/index.php;
                    fastcgi_pass unix:$directory/fpm.sock;
                }
            }
        }
        NGINX);

    // That of this PHP: another one could not load its extension.
    $fpm = dirname(PHP_BINARY, 2) . '/sbin/php-fpm';
    $fpm = is_executable($fpm) ? $fpm : '/usr/sbin/php-fpm' . PHP_MAJOR_VERSION . '.' . PHP_MINOR_VERSION;
    $children = [];
    foreach ([
        [$fpm, ...$options, ...($isRoot ? ['-R'] : []), '-F', '-y', "$directory/fpm.conf"],
        ['/usr/sbin/nginx', '-e', "$directory/nginx.log", '-c', "$directory/nginx.conf"],
    ] as $command) {
        is_executable($command[0]) || exit("$command[0] is missing: on Debian, `scripts/setup test` installs it\n");
        // A variable would be stronger than what the pool says.
        $environment = array_diff_key(getenv(), ['REALTIME_SOCKET' => true]);
        $children[] = proc_open($command, [['file', '/dev/null', 'r'], STDERR, ['file', '/dev/null', 'w']], $pipes, null, $environment);
    }

    /** Whether nginx and php-fpm answer. */
    $answers = fn (): bool => str_contains((string) @file_get_contents("http://127.0.0.1:$port/"), '<title>');
    $deadline = microtime(true) + 30;
    while (!$answers()) {
        if (microtime(true) > $deadline) {
            $problem = trim((string) @file_get_contents("$directory/nginx.log") . @file_get_contents("$directory/fpm.log"));
            break;
        }
        usleep(20_000);
    }
    if (isset($problem)) {
        fwrite(STDERR, "nginx or php-fpm did not start:\n$problem\n");
        $status = 1;
    } else {
        echo "Open http://127.0.0.1:$port/ $what\n";
        // Blocks until Ctrl-C or TERM, then closes the WebSockets.
        $status = Realtime\serve();
    }

    foreach ($children as $child) {
        proc_terminate($child);
        proc_close($child);
    }
    array_map(fn ($path) => is_dir($path) ? @rmdir($path) : @unlink($path), glob("$directory/*"));
    rmdir($directory);
    return $status;
}
