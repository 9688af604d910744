<?php

declare(strict_types=1);

/*
 * Signalling for WebRTC: two browsers find each other in a room, and talk to each other directly from then on.
 *
 * A client connects to /ws?envelope=raw&room=NAME. PHP decides who gets in and tells who is there; offers, answers and
 * candidates are relayed between the two by the hub, verbatim, without PHP.
 */

require __DIR__ . '/../demo/PageServer.php';

$hub = Realtime\start([
    'listen' => '127.0.0.1:' . ($_SERVER['HUB_PORT'] ?? '8080'),
    'allowed_origins' => ['*'],
    'channels' => [['match' => 'room-*', 'client_events' => true, 'max_members' => 2]],
]);
$page = new PageServer(str_replace('{{hub}}', (string) $hub->port, file_get_contents(__DIR__ . '/index.html')), '127.0.0.1', [(int) ($_SERVER['PAGE_PORT'] ?? 8000), 0]);

/** Who is in which room. @var array<string, array<string, Realtime\Connection>> $rooms */
$rooms = [];
$server = new Realtime\Server();

$server->on('connect', function (Realtime\Connection $peer) use (&$rooms): void {
    $room = $peer->query['room'] ?? 'default';
    if (count($rooms[$room] ?? []) >= 2 || !$peer->join("room-$room")) {
        $peer->send('{"type":"error","message":"Room is full"}');
        $peer->close(4001, 'Room is full');
        return;
    }
    $peer->data = $room;
    $rooms[$room][$peer->id] = $peer;
    $peer->send(json_encode(['type' => 'joined', 'room' => $room, 'peers' => count($rooms[$room])], JSON_THROW_ON_ERROR));
    if (count($rooms[$room]) === 2) {
        foreach ($rooms[$room] as $each) {
            $each->send('{"type":"ready","message":"Both peers connected"}');
        }
    }
});

$server->on('disconnect', function (Realtime\Connection $peer) use (&$rooms): void {
    $room = $peer->data;
    if ($room === null) {
        return;
    }
    unset($rooms[$room][$peer->id]);
    foreach ($rooms[$room] as $left) {
        $left->send('{"type":"peer_disconnected","message":"Other peer disconnected"}');
    }
    if ($rooms[$room] === []) {
        unset($rooms[$room]);
    }
});
$server->poll();

$stop = false;
pcntl_async_signals(true);
foreach ([SIGINT, SIGTERM] as $signal) {
    pcntl_signal($signal, function () use (&$stop): void {
        $stop = true;
    });
}
echo "Open http://127.0.0.1:$page->port/ in two windows. Ctrl-C ends it.\n";
while (!$stop) {
    $page->serveUntil(hrtime(true) + 10_000_000);
    $server->poll(10);
}
exit($hub->stop(2000) ? 0 : 1);
