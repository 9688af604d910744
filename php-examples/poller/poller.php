<?php

declare(strict_types=1);

/*
 * Polls 100 devices 6.25 times a second and broadcasts each one's reading to its channel: 625 broadcasts a second.
 *
 * The hub is another process (`realtime serve`), found at realtime.socket. A broadcast is one write to its socket, so
 * this program may end, crash or be deployed anew, and no browser notices but by the readings that are missing.
 */

require __DIR__ . '/Device.php';

const DEVICES = 100;
const ROUND_NS = 160_000_000;

$running = true;
pcntl_async_signals(true);
foreach ([SIGINT, SIGTERM] as $signal) {
    pcntl_signal($signal, function () use (&$running): void {
        $running = false;
    }, restart_syscalls: false);
}

$devices = array_map(fn (int $number): Device => new Device($number), range(0, DEVICES - 1));
$parent = posix_getppid();
$began = hrtime(true);
$costs = [];
for ($round = 1; $running && posix_getppid() === $parent; $round++) {
    foreach ($devices as $device) {
        $reading = ['round' => $round, 'poller' => getmypid()] + $device->read();
        $before = hrtime(true);
        broadcast("device.{$device->number}", $reading, as: 'reading');
        $costs[] = hrtime(true) - $before;
    }
    if ($round % 6 === 0) {
        sort($costs);
        broadcast('poller', [
            'pid' => getmypid(),
            'broadcasts' => $round * DEVICES,
            'seconds' => intdiv(hrtime(true) - $began, 1_000_000_000),
            'cost_us' => round($costs[intdiv(count($costs), 2)] / 1000, 1),
        ], as: 'status');
        $costs = [];
    }
    // The moment that is due, not a pause after the work: what a round costs does not slow the next one.
    $wait = $began + $round * ROUND_NS - hrtime(true);
    $wait > 0 && usleep(intdiv($wait, 1000));
}
