<?php

declare(strict_types=1);

/*
 * A long-running PHP program that polls "devices" and broadcasts each one's readings to its channel:
 *
 *     php -d extension=build/realtime.so php-examples/demo/poller.php
 *
 * The devices are parts of this machine, read from /proc ten times a second. Realtime\start() puts the hub's threads
 * into this process, so each broadcast() below is a function call, and the browsers' WebSockets end here too.
 *
 * ADDRESS (default 127.0.0.1), HUB_PORT (8080) and PAGE_PORT (8000) choose other ones; port 0 is any free one.
 */

require __DIR__ . '/Machine.php';
require __DIR__ . '/PageServer.php';

const POLL_NS = 100_000_000;

if (!function_exists('Realtime\start')) {
    fwrite(STDERR, "the realtime extension is not loaded: run `make demo`, or add -d extension=build/realtime.so\n");
    exit(1);
}

$host = getenv('ADDRESS') ?: '127.0.0.1';
$loopback = in_array($host, ['127.0.0.1', '::1', 'localhost'], true);
// Any other address needs a word on authentication. This page has none: everyone who can reach it sees the readings.
$config = $loopback ? [] : ['auth' => ['mode' => ['none']]];
$ports = fn (string $name, int $usual): array => getenv($name) === false ? [$usual, 0] : [(int) getenv($name)];

foreach ($ports('HUB_PORT', 8080) as $port) {
    try {
        $hub = Realtime\start(['listen' => "$host:$port"] + $config);
        break;
    } catch (Realtime\Exception\RealtimeException $taken) {
        // Another program has the usual port: take any free one.
    }
}
$hub ?? throw $taken;

$page = new PageServer(
    strtr(file_get_contents(__DIR__ . '/index.html'), ['{{hub-port}}' => (string) $hub->port]),
    $host,
    $ports('PAGE_PORT', 8000),
);
printf("\n  Open  http://%s:%d/\n\n  hub   %s\n  stop  Ctrl-C\n\n", $loopback ? $host : gethostname(), $page->port, $hub->url);

$running = true;
pcntl_async_signals(true);
foreach ([SIGINT, SIGTERM] as $signal) {
    pcntl_signal($signal, function () use (&$running): void {
        $running = false;
    }, restart_syscalls: false);
}

$machine = new Machine();
$catalogue = [];
$callCost = 0.0;
for ($tick = 0, $next = hrtime(true); $running; $tick++) {
    $costs = [];
    foreach ($machine->poll() as $channel => $values) {
        $before = hrtime(true);
        broadcast($channel, ['at' => microtime(true) * 1000, 'values' => $values], as: 'reading');
        $costs[] = hrtime(true) - $before;
    }
    // What a call of broadcast() cost this time, as one more device.
    if ($costs) {
        sort($costs);
        $values = ['median' => $costs[intdiv(count($costs), 2)] / 1000];
        broadcast('device.broadcast', ['at' => microtime(true) * 1000, 'values' => $values], as: 'reading');
    }

    $known = $catalogue;
    $catalogue = [...$machine->catalogue(), [
        'channel' => 'device.broadcast',
        'kind' => 'hub',
        'label' => 'One broadcast() call',
        'unit' => 'microseconds',
        'series' => ['median' => 'median of this poll'],
    ]];
    // Once a second for those who have just come, at once when a device appears or leaves.
    if ($tick % 10 === 0 || $catalogue !== $known) {
        broadcast('devices', $catalogue, as: 'catalogue');
    }

    // A poll that fell behind (the machine slept) does not make up for what it missed.
    $next = max($next + POLL_NS, hrtime(true));
    $page->serveUntil($next);
}

$hub->stop();
echo "\nstopped\n";
