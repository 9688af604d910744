<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require __DIR__ . '/../support/fpm.php';
require __DIR__ . '/../support/nginx.php';

use Tests\{Client, Fpm, HubProcess, Nginx, Process};

use function Tests\{check, contains, eventually, lives, php_options, processes, same, test};

// As on a server: nginx, php-fpm's workers, and a hub that is a process of its own.
$serve = fn () => new Process([PHP_BINARY, ...php_options(), '-r', "exit(Realtime\\serve(['listen' => '127.0.0.1:0', 'shards' => 2]));"]);
$fpm = new Fpm(['-d', 'log_errors=1'], children: 4, pool: "security.limit_extensions =\npm.max_requests = 5\nclear_env = yes");
$nginx = new Nginx($fpm);
$nginx->script('send.php', "broadcast('page', \$_GET['text']); echo getmypid();");
$nginx->script('publish.php', "echo json_encode(Realtime\\publish('page', \$_GET['text'])->matched);");
$nginx->script('flood.php', "for (\$i = 0; \$i < 500; \$i++) { broadcast('flood', \$_GET['writer'] . ' ' . (\$_GET['from'] + \$i)); } echo Realtime\\stats()['failed_calls'];");

/** Restarts the hub; the process and its address. */
$start = function () use ($serve): array {
    $hub = $serve();
    return [$hub, $hub->expect('~listening on (ws://\S+/ws),~')[1]];
};
/** Ends it in good order. */
$stop = function (Process $hub): void {
    $hub->signal(SIGTERM);
    same(0, $hub->wait());
};

test('fpm and nginx: what a web request broadcasts reaches a WebSocket client of the hub', function () use ($nginx, $start, $stop) {
    [$hub, $url] = $start();
    $client = Client::subscribed($url, 'page');
    [$status] = $nginx->get('/send.php?text=hello');
    same([200, 'hello'], [$status, $client->next()['data']]);
    same([200, '1'], $nginx->get('/publish.php?text=again'));
    same('again', $client->next()['data']);
    $stop($hub);
});

test('fpm and nginx: workers that are recycled (pm.max_requests) lose nothing', function () use ($nginx, $start, $stop) {
    [$hub, $url] = $start();
    $client = Client::subscribed($url, 'page');
    $workers = [];
    for ($i = 0; $i < 60; $i++) {
        [$status, $worker] = $nginx->get("/send.php?text=$i");
        same(200, $status);
        $workers[$worker] = true;
        same((string) $i, $client->next()['data']);
    }
    check(count($workers) > 8, 'only ' . count($workers) . ' workers took part');
    $stop($hub);
});

test('fpm and nginx: a reload (USR2) keeps the hub and its connections', function () use ($fpm, $nginx, $start, $stop) {
    [$hub, $url] = $start();
    $client = Client::subscribed($url, 'page');
    [, $before] = $nginx->get('/send.php?text=before');
    same('before', $client->next()['data']);
    $fpm->signal(SIGUSR2);
    eventually(fn () => !lives((int) $before), 'the old worker has gone');
    eventually(fn () => $nginx->get('/send.php?text=after')[0] === 200, 'the new workers answer');
    same('after', $client->next()['data']);
    check($hub->running(), 'the hub runs on');
    $stop($hub);
});

test('fpm and nginx: a hub that was started anew is reached within the next call of every worker', function () use ($nginx, $start, $stop) {
    [$hub, $url] = $start();
    for ($i = 0; $i < 8; $i++) {
        same(200, $nginx->get('/send.php?text=warm')[0]);
    }
    $stop($hub);
    [$hub, $url] = $start();
    $client = Client::subscribed($url, 'page');
    for ($i = 0; $i < 8; $i++) {
        same([200, '1'], $nginx->get("/publish.php?text=$i"));
        same((string) $i, $client->next()['data']);
    }
    $stop($hub);
});

test('fpm and nginx: four workers that flood at once lose nothing', function () use ($nginx, $start, $stop) {
    [$hub, $url] = $start();
    $client = Client::subscribed($url, 'flood');
    $next = [0, 0, 0, 0];
    // All calls of a request wait for the hub a second at most, together: so many that a busy machine has taken them by then.
    for ($from = 0; $from < 5000; $from += 500) {
        $requests = array_map(fn ($writer) => $nginx->begin("/flood.php?writer=$writer&from=$from"), range(0, 3));
        for ($i = 0; $i < 2000; $i++) {
            [$writer, $sequence] = explode(' ', $client->next()['data']);
            same($next[$writer]++, (int) $sequence, "writer $writer:");
        }
        foreach ($requests as $request) {
            same([200, '0'], $nginx->finish($request));
        }
    }
    $stop($hub);
});

test('fpm and nginx: without a hub a request logs one line a second, answers 200 and goes on at once', function () use ($fpm, $nginx) {
    $nginx->script('down.php', <<<'PHP'
        set_error_handler(fn ($level, $message) => throw new ErrorException($message));
        $started = microtime(true);
        for ($i = 0; $i < 1000; $i++) {
            broadcast('page', 'x');
        }
        echo json_encode([Realtime\stats(...) instanceof Closure, (int) (microtime(true) - $started)]);
        PHP);
    $before = substr_count($fpm->log(), 'broadcast() failed');
    [$status, $body] = $nginx->get('/down.php');
    same(200, $status);
    [, $seconds] = json_decode($body);
    $lines = eventually(fn () => substr_count($fpm->log(), 'broadcast() failed') - $before, 'the log has a line');
    check($lines >= 1 && $lines <= $seconds + 2, "$lines lines in $seconds s");
    $fpm->logged('there is none at ' . getenv('REALTIME_SOCKET'));
});

test('fpm and nginx: with a hub that stands still a request waits for one deadline, whatever it calls', function () use ($nginx) {
    $hub = new HubProcess();
    $nginx->script('frozen.php', <<<'PHP'
        $seen = [];
        for ($i = 0; $i < 50; $i++) {
            try {
                $i % 2 ? Realtime\publish('page', 'x') : Realtime\stats();
                $seen[] = 'answered';
            } catch (Realtime\Exception\RealtimeException $e) {
                $seen[] = $e::class;
            }
            // Past the pause of the client, the request's own limit holds.
            $i === 10 && usleep(1_100_000);
        }
        echo json_encode(array_count_values($seen));
        PHP);
    $hub->freeze();
    [$status, $body] = $nginx->get('/frozen.php');
    same(200, $status);
    same(['Realtime\Exception\Timeout' => 1, 'Realtime\Exception\Unavailable' => 49], json_decode($body, true));
    $hub->signal(SIGCONT);
    // The next request starts afresh; this worker's pause may still hold for a moment.
    eventually(fn () => $nginx->get('/publish.php?text=x') === [200, '0'], 'requests are answered again');
    $hub->stop();
});

test('fpm and nginx: php-fpm ends within its grace and leaves nobody behind', function () use (&$fpm, &$nginx) {
    $master = "$fpm->directory/fpm.conf";
    check(processes($master) !== [], 'the master is there');
    $workers = array_map(fn () => (int) $nginx->get('/send.php?text=x')[1], range(1, 4));
    $nginx = $fpm = null;
    same([], processes($master));
    same([], array_filter($workers, lives(...)));
});
