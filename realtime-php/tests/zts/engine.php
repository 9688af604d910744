<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Tests\{Client, Process};

use function Tests\{check, contains, same, socket_path, test};

const THREADS = 8;
const REQUESTS = 600;
const ENGINES = 3;

/** The host of host.c, with a hub on a free port. */
function host(array $environment = [], int $engines = ENGINES): Process
{
    static $binary = null;
    if ($binary === null) {
        $binary = getenv('TEST_DIRECTORY') . '/host';
        $prefix = dirname(PHP_BINARY, 2);
        $config = fn (string $what) => trim((string) shell_exec(escapeshellarg("$prefix/bin/php-config") . " --$what"));
        // The libraries in `--libs` are libphp.so's own affair.
        exec('cc -Wall -Werror -O1 -g -o ' . escapeshellarg($binary) . ' ' . escapeshellarg(__DIR__ . '/host.c') . ' ' . $config('includes')
            . " -I{$config('include-dir')} -L$prefix/lib -Wl,-rpath,$prefix/lib -lphp -lpthread 2>&1", $output, $status);
        check($status === 0, "host.c: " . implode("\n", $output));
    }
    return new Process(
        [$binary, getenv('TEST_EXTENSION'), __DIR__ . '/request.php', (string) THREADS, (string) REQUESTS, (string) $engines],
        $environment + ['REALTIME_LISTEN' => '127.0.0.1:0', 'REALTIME_SOCKET' => socket_path()],
    );
}

test('the hub starts with the server, serves every PHP thread, outlives three engines, and ends when none follows', function () {
    $host = host();
    $host->expect('~^engine 1$~m');
    // Before any request: no broadcast has woken it.
    $url = $host->expect('~listening on (ws://\S+),~')[1];
    $client = Client::subscribed($url, 'load');
    $next = array_fill(1, ENGINES, array_fill(0, THREADS, 0));
    for ($engine = 1; $engine <= ENGINES; $engine++) {
        $host->expect("~^engine $engine\$~m");
        $host->write("\n");
        // All messages of this engine on the one connection, each thread's in its order.
        for ($i = 0; $i < THREADS * REQUESTS; $i++) {
            [$of, $thread, $request] = array_map('intval', explode('/', $client->next()['data']));
            same([$engine, $next[$engine][$thread]], [$of, $request], "message $i of engine $engine, thread $thread:");
            $next[$engine][$thread]++;
        }
    }
    $host->expect('~^ended$~m');
    same(1001, $client->closeCode(), 'after the last engine');
    contains('PHP has ended and did not come back', $host->errors());
    $host->write("\n");
    same(0, $host->wait(), $host->errors());
    same(1, substr_count($host->errors(), 'embedded hub, listening'), 'hubs that were started:');
});

test('a host that exits closes its connections in good order', function () {
    $host = host(engines: 1);
    $client = Client::subscribed($host->expect('~listening on (ws://\S+),~')[1], 'load');
    $host->write("\n");
    $host->expect('~^ended$~m');
    $host->write("\n");
    same(0, $host->wait(), $host->errors());
    same(1001, $client->closeCode());
});

test('a hub that cannot start does not keep the server from starting, and says why', function () {
    $taken = stream_socket_server('tcp://127.0.0.1:0');
    $host = host(['REALTIME_LISTEN' => stream_socket_get_name($taken, false), 'REALTIME_ON_ERROR' => 'log'], 1);
    $host->expect('~^engine 1$~m');
    contains('the hub did not start with the server: ', $host->errors());
    $host->signal(SIGKILL);
});

test('with realtime.mode = bus or off the server starts no hub', function () {
    foreach (['bus', 'off'] as $mode) {
        $host = host(['REALTIME_MODE' => $mode], 1);
        $host->expect('~^engine 1$~m');
        check(!str_contains($host->errors(), 'listening'), $host->errors());
        $host->signal(SIGKILL);
    }
});
