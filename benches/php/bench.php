<?php
// Executes the driver's JSON lines inside a PHP process that embeds the hub. Ends when standard input closes.

declare(strict_types=1);

const CHANNEL = 'bench';

$url = $argv[1];
$hub = Realtime\start(['listen' => '127.0.0.1:0', 'socket' => '', 'heartbeat' => ['ping_interval_ms' => 600_000]]);
answer(['port' => $hub->port]);

$http = curl_init($url);
curl_setopt_array($http, [CURLOPT_POST => true, CURLOPT_RETURNTRANSFER => true, CURLOPT_HTTPHEADER => ['Content-Type: application/json', 'Expect:']]);

while (($line = fgets(STDIN)) !== false) {
    $command = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
    answer(match ($command['cmd']) {
        'burst' => burst($command['op'], $command['calls'], str_repeat('x', $command['size']), $http),
        'single' => single($command['op'], $command['calls'], str_repeat('x', $command['size']), $command['pause_us'], $http),
        'publish' => publish($command),
    });
}

function answer(array $value): void
{
    fwrite(STDOUT, json_encode($value, JSON_THROW_ON_ERROR) . "\n");
}

/** Calls back to back; every operation has its own loop, so that nothing but the call is measured. */
function burst(string $operation, int $calls, string $message, CurlHandle $http): array
{
    $start = hrtime(true);
    switch ($operation) {
        case 'noop':
            for ($i = 0; $i < $calls; $i++) {
                bench_noop(CHANNEL, $message);
            }
            break;
        case 'handoff':
            for ($i = 0; $i < $calls; $i++) {
                bench_handoff(CHANNEL, $message);
            }
            break;
        case 'broadcast':
            for ($i = 0; $i < $calls; $i++) {
                broadcast(CHANNEL, $message);
            }
            break;
        case 'http':
            for ($i = 0; $i < $calls; $i++) {
                post($http, $message);
            }
            break;
    }
    return ['ns' => [(hrtime(true) - $start) / $calls]];
}

/** Calls one at a time, with a pause in which whoever consumes them falls asleep. */
function single(string $operation, int $calls, string $message, int $pauseUs, CurlHandle $http): array
{
    $times = [];
    for ($i = 0; $i < $calls; $i++) {
        usleep($pauseUs);
        switch ($operation) {
            case 'noop':
                $start = hrtime(true);
                bench_noop(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'handoff':
                $start = hrtime(true);
                bench_handoff(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'broadcast':
                $start = hrtime(true);
                broadcast(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'http':
                $start = hrtime(true);
                post($http, $message);
                $times[] = hrtime(true) - $start;
                break;
        }
    }
    return ['ns' => $times];
}

/** What applications post to their WebSocket daemons: the channel and the message as JSON. */
function post(CurlHandle $http, string $message): void
{
    curl_setopt($http, CURLOPT_POSTFIELDS, json_encode(['channel' => CHANNEL, 'data' => $message]));
    curl_exec($http);
    if (curl_getinfo($http, CURLINFO_RESPONSE_CODE) !== 204) {
        throw new RuntimeException('POST failed: ' . curl_error($http));
    }
}

/** Broadcasts stamped messages on schedule; `hrtime()` reads the clock that the load generator reads. */
function publish(array $command): array
{
    $start = hrtime(true);
    for ($tick = 0; $tick < $command['count']; $tick++) {
        $wait = $start + $tick * $command['interval_us'] * 1000 - hrtime(true);
        if ($wait > 0) {
            usleep(intdiv($wait, 1000));
        }
        broadcast($command['channel'], str_pad(sprintf('t=%020d;', hrtime(true)), $command['size'], 'x'));
    }
    return ['id' => $command['id'], 'published' => $command['count'], 'refused' => 0];
}
