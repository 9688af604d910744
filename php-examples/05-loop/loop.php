<?php

declare(strict_types=1);

require __DIR__ . '/../client.php';

$hub = Realtime\start(['listen' => '127.0.0.1:0']);
$server = new Realtime\Server();
$answered = 0;
$server->on('message', function (Realtime\Connection $connection, string $event, mixed $data) use (&$answered): string {
    $answered++;
    return strrev($data);
});

// From here on the hub tells the program what happens.
$server->stream();

$client = new ExampleClient($hub->url, 'clock');
$client->send(['action' => 'message', 'event' => 'reverse', 'data' => 'live', 'id' => 1]);

// With ReactPHP: Loop::addReadStream($server->stream(), fn () => $server->poll()) and Loop::addPeriodicTimer(0.1, …).
$next = microtime(true);
for ($ticks = 0; $ticks < 3 || $answered === 0;) {
    $read = [$server->stream()];
    $write = $except = null;
    $left = max(0, $next - microtime(true));
    if (stream_select($read, $write, $except, 0, (int) ($left * 1e6)) > 0) {
        $server->poll();
    }
    if (microtime(true) >= $next) {
        broadcast('clock', 'tick ' . ++$ticks);
        $next += 0.1;
    }
}

for ($frames = []; count($frames) < $ticks + 1;) {
    $frame = json_decode($client->receive(), true);
    $frames[] = $frame['type'] === 'answer' ? "answer: $frame[data]" : $frame['data'];
}
// The answer comes whenever it is ready, between two ticks.
sort($frames);
echo implode("\n", array_slice($frames, 0, 4)), "\n";

$hub->stop();
