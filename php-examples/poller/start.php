<?php

declare(strict_types=1);

/*
 * The poller as it runs in production, started together: the hub (`realtime serve`), the poller that broadcasts through
 * it, and a page with a dashboard. The poller is started anew when it ends, as systemd would do it.
 *
 *     php -d extension=$PWD/build/realtime.so php-examples/poller/start.php
 *
 * HUB_PORT (default 8080) and PAGE_PORT (8000) choose other ones; port 0 is any free one. REALTIME names the program.
 */

require __DIR__ . '/../demo/PageServer.php';

if (!function_exists('broadcast')) {
    fwrite(STDERR, "the realtime extension is not loaded: add -d extension=\$PWD/build/realtime.so\n");
    exit(1);
}
$program = getenv('REALTIME') ?: dirname(__DIR__, 2) . '/build/realtime';
is_executable($program) || exit("$program is missing: `make build` builds it\n");

$directory = sys_get_temp_dir() . '/realtime-poller-' . getmypid();
mkdir($directory, 0700);
$socket = "$directory/hub.sock";
$nothing = ['file', '/dev/null', 'r'];

// Leaves with this program, however it ends.
$hub = proc_open(
    [$program, 'serve', '--listen', '127.0.0.1:' . ($_SERVER['HUB_PORT'] ?? '8080'), '--socket', $socket, '--follow', (string) getmypid(), '--log-level', 'warn'],
    [$nothing, STDOUT, ['pipe', 'w']],
    $pipes,
);
$said = '';
while (!preg_match('~listens on ws://127\.0\.0\.1:(\d+)/~', $said, $match)) {
    $line = fgets($pipes[2]);
    $line === false && exit("the hub did not start: $said\n");
    $said .= $line;
}
$port = (int) $match[1];

// The options that this process was started with: the extension is one.
$arguments = explode("\0", file_get_contents('/proc/self/cmdline'));
$options = array_slice($arguments, 1, array_search($argv[0], $arguments, true) - 1);
$startPoller = function () use ($options, $socket, $nothing): array {
    $environment = ['REALTIME_SOCKET' => $socket] + getenv();
    $poller = proc_open([PHP_BINARY, ...$options, __DIR__ . '/poller.php'], [$nothing, STDOUT, STDERR], $pipes, null, $environment);

    return [$poller, proc_get_status($poller)['pid']];
};

$page = new PageServer(
    strtr(file_get_contents(__DIR__ . '/index.html'), ['{{hub-port}}' => (string) $port]),
    '127.0.0.1',
    getenv('PAGE_PORT') === false ? [8000, 0] : [(int) getenv('PAGE_PORT')],
);
[$poller, $pid] = $startPoller();
printf("\n  Open    http://127.0.0.1:%d/\n\n  hub     ws://127.0.0.1:%d/ws\n  poller  pid %d; kill -9 it and watch the page stay\n  stop    Ctrl-C\n\n", $page->port, $port, $pid);

$running = true;
pcntl_async_signals(true);
foreach ([SIGINT, SIGTERM] as $signal) {
    pcntl_signal($signal, function () use (&$running): void {
        $running = false;
    }, restart_syscalls: false);
}
$status = 0;
while ($running) {
    $page->serveUntil(hrtime(true) + 200_000_000);
    if (!proc_get_status($hub)['running']) {
        fwrite(STDERR, 'the hub has ended: ' . stream_get_contents($pipes[2]) . "\n");
        $status = 1;
        break;
    }
    if ($running && !proc_get_status($poller)['running']) {
        [$poller, $pid] = $startPoller();
        echo "  the poller has ended and was started anew: pid $pid\n";
    }
}
foreach ([$poller, $hub] as $child) {
    proc_terminate($child);
    proc_close($child);
}
array_map(unlink(...), glob("$directory/*"));
rmdir($directory);
exit($status);
