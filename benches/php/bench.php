<?php
// Executes the driver's JSON lines inside a PHP process that embeds the hub, or, where a second argument names the
// program `realtime`, reaches one over its bus. Ends when standard input closes.

declare(strict_types=1);

const CHANNEL = 'bench';

$url = $argv[1];
if (isset($argv[2])) {
    [$server, $port] = serve($argv[2]);
    answer(['port' => $port, 'pid' => proc_get_status($server)['pid']]);
} else {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'socket' => '', 'heartbeat' => ['ping_interval_ms' => 600_000]]);
    answer(['port' => $hub->port, 'pid' => getmypid()]);
}

$http = curl_init($url);
curl_setopt_array($http, [CURLOPT_POST => true, CURLOPT_RETURNTRANSFER => true, CURLOPT_HTTPHEADER => ['Content-Type: application/json', 'Expect:']]);

while (($line = fgets(STDIN)) !== false) {
    $command = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
    answer(match ($command['cmd']) {
        'burst' => burst($command['op'], $command['calls'], str_repeat('x', $command['size']), $http),
        'single' => single($command['op'], $command['calls'], str_repeat('x', $command['size']), $command['pause_us'], $http),
        'publish' => publish($command),
        'poll' => poll($command),
    });
}
isset($server) && proc_terminate($server);

/** The hub as a process of its own, on this process' bus socket; it and its port. */
function serve(string $program): array
{
    $settings = ['--listen', '127.0.0.1:0', '--socket', getenv('REALTIME_SOCKET'), '--set', 'heartbeat.ping_interval_ms=600000', '--log-level', 'warn'];
    $server = proc_open([$program, 'serve', ...$settings], [['file', '/dev/null', 'r'], STDERR, ['pipe', 'w']], $pipes);
    // Kept open: it is where the hub would complain.
    $GLOBALS['complaints'] = $pipes[2];
    $line = (string) fgets($pipes[2]);
    preg_match('~ws://127\.0\.0\.1:(\d+)/~', $line, $match) || throw new RuntimeException("the hub did not start: $line");
    return [$server, (int) $match[1]];
}

/** Waits until the hub behind the bus has taken everything; nobody hears of it. */
function settle(): void
{
    Realtime\publish('settled', '');
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
        case 'syscall':
            for ($i = 0; $i < $calls; $i++) {
                bench_syscall(CHANNEL, $message);
            }
            break;
        case 'handoff':
            for ($i = 0; $i < $calls; $i++) {
                bench_handoff(CHANNEL, $message);
            }
            break;
        case 'write':
            bench_write(CHANNEL, $message) || throw new RuntimeException('nobody reads');
            $start = hrtime(true);
            for ($i = 0; $i < $calls; $i++) {
                bench_write(CHANNEL, $message);
            }
            break;
        case 'broadcast':
            for ($i = 0; $i < $calls; $i++) {
                broadcast(CHANNEL, $message);
            }
            break;
        case 'batch':
            Realtime\batch(function () use ($calls, $message) {
                for ($i = 0; $i < $calls; $i++) {
                    broadcast(CHANNEL, $message);
                }
            });
            break;
        case 'receipt':
            for ($i = 0; $i < $calls; $i++) {
                Realtime\publish(CHANNEL, $message);
            }
            break;
        case 'http':
            for ($i = 0; $i < $calls; $i++) {
                post($http, $message);
            }
            break;
    }
    $took = hrtime(true) - $start;
    settle();
    return ['ns' => [$took / $calls]];
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
            case 'syscall':
                $start = hrtime(true);
                bench_syscall(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'handoff':
                $start = hrtime(true);
                bench_handoff(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'write':
                $start = hrtime(true);
                bench_write(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'broadcast':
                $start = hrtime(true);
                broadcast(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'receipt':
                $start = hrtime(true);
                Realtime\publish(CHANNEL, $message);
                $times[] = hrtime(true) - $start;
                break;
            case 'http':
                $start = hrtime(true);
                post($http, $message);
                $times[] = hrtime(true) - $start;
                break;
        }
    }
    settle();
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

/** A poller: rounds on schedule, in each a stamped message to every device's channel. */
function poll(array $command): array
{
    $start = hrtime(true);
    for ($round = 0; $round < $command['rounds']; $round++) {
        $wait = $start + $round * $command['interval_us'] * 1000 - hrtime(true);
        if ($wait > 0) {
            usleep(intdiv($wait, 1000));
        }
        for ($device = 0; $device < $command['devices']; $device++) {
            broadcast(sprintf('d%02d', $device), str_pad(sprintf('t=%020d;', hrtime(true)), $command['size'], 'x'));
        }
    }
    return ['id' => 0, 'published' => $command['rounds'] * $command['devices'], 'refused' => 0];
}
