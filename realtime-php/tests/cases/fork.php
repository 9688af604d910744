<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Tests\Client;

use function Tests\{check, eventually, free_port, php, same, test};

/** Waits for a child; its exit status, or 128 + signal. */
function reap(int $child): int
{
    $status = eventually(fn () => pcntl_waitpid($child, $status, WNOHANG) === $child ? [$status] : null, 'the child ended')[0];
    return pcntl_wifexited($status) ? pcntl_wexitstatus($status) : 128 + pcntl_wtermsig($status);
}

test('a forked child exits cleanly and the parent\'s hub works on', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
    $client = Client::subscribed($hub->url, 'a');
    // A PHP process of its own forks, so that the child's way out is a normal end of a script.
    $code = <<<'PHP'
        $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
        $client = Tests\Client::subscribed($hub->url, 'a');
        broadcast('a', 'before');
        $child = pcntl_fork();
        if ($child === 0) {
            return;
        }
        pcntl_waitpid($child, $status);
        check(pcntl_wifexited($status) && pcntl_wexitstatus($status) === 0, 'the child ended with ' . $status);
        broadcast('a', 'after');
        same(['before', 'after'], [$client->next()['data'], $client->next()['data']]);
        check($hub->stop(), 'complete');
        echo 'fine';
        PHP;
    same('fine', php($code)->output());
    broadcast('a', 'x');
    same('x', $client->next()['data']);
    $hub->stop();
});

test('the child publishes over the bus to its parent\'s hub, on a connection of its own; the handle is dead; a hub of its own may start', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
    $client = Client::subscribed($hub->url, 'a');
    $child = pcntl_fork();
    if ($child === 0) {
        $problems = [];
        Realtime\publish('a', 'from the child')->matched === 1 || $problems[] = 'nobody heard the child';
        $hub->isRunning() && $problems[] = 'the handle runs';
        $hub->stop() || $problems[] = 'stop() of the parent\'s handle';
        try {
            $hub->setUser('1.2', 'x');
            $problems[] = 'setUser() did not throw';
        } catch (Realtime\Exception\Unavailable) {
        }
        try {
            Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1]);
            $problems[] = 'a second hub on the same socket';
        } catch (Realtime\Exception\ConfigError $e) {
            str_contains($e->getMessage(), 'served by another hub') || $problems[] = $e->getMessage();
        }
        $own = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1, 'socket' => '']);
        $own->port === $hub->port && $problems[] = 'the same port';
        $mine = Client::subscribed($own->url, 'mine');
        broadcast('mine', 'x');
        $mine->next()['data'] === 'x' || $problems[] = 'nothing came';
        // A grandchild must not close what its parent still uses.
        $grandchild = pcntl_fork();
        if ($grandchild === 0) {
            exit($own->isRunning() ? 1 : 0);
        }
        reap($grandchild) === 0 || $problems[] = 'the grandchild failed';
        broadcast('mine', 'y');
        $mine->next()['data'] === 'y' || $problems[] = 'nothing came after the fork';
        $own->stop() || $problems[] = 'the own hub did not stop';
        fwrite(STDERR, implode("\n", $problems));
        exit($problems === [] ? 0 : 1);
    }
    same(0, reap($child), 'the child ended with');
    broadcast('a', 'from the parent');
    same(['from the child', 'from the parent'], [$client->next()['data'], $client->next()['data']]);
    check($hub->stop(), 'complete');
});

test('a child reaches its parent\'s hub also where only code said where its bus is', function () {
    foreach ([['socket' => Tests\socket_path()], ['socket' => 'tcp://127.0.0.1:0', 'secret' => str_repeat('s', 32)]] as $bus) {
        $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1, ...$bus]);
        $client = Client::subscribed($hub->url, 'a');
        $child = pcntl_fork();
        if ($child === 0) {
            $grandchild = pcntl_fork();
            $matched = Realtime\publish('a', $grandchild === 0 ? 'grandchild' : 'child')->matched;
            exit($matched === 1 && ($grandchild === 0 || reap($grandchild) === 0) ? 0 : 1);
        }
        same(0, reap($child), "the child with the bus at {$bus['socket']}");
        $got = [$client->next()['data'], $client->next()['data']];
        sort($got);
        same(['child', 'grandchild'], $got);
        check($hub->stop(), 'complete');
    }
});

test('the port and the connections are the parent\'s alone: they end with its stop() although a child lives', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:' . free_port(), 'shards' => 2]);
    $client = Client::subscribed($hub->url, 'a');
    [$childEnd, $parentEnd] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
    $child = pcntl_fork();
    if ($child === 0) {
        fclose($parentEnd);
        // Inherited by the test's own client: that one is not the hub's.
        $client->drop();
        $sockets = array_filter(Tests\descriptors(), fn ($target) => str_starts_with($target, 'socket:'));
        fwrite($childEnd, count($sockets) . "\n");
        fgets($childEnd);
        exit(0);
    }
    fclose($childEnd);
    // Its end of the pair; neither the listener nor the connection.
    same("1\n", fgets($parentEnd));
    check($hub->stop(), 'complete');
    same(1001, $client->closeCode());
    // Nothing more comes: with a copy in the child the connection would stay open.
    eventually(fn () => fread($client->stream, 1) === '' && feof($client->stream), 'the connection ended');
    $again = Realtime\start(['listen' => "127.0.0.1:{$hub->port}", 'shards' => 2]);
    same($hub->port, $again->port);
    $again->stop();
    fwrite($parentEnd, "\n");
    same(0, reap($child));
});

test('a hundred forks under traffic lose nothing and hang nobody', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
    $client = Client::subscribed($hub->url, 'a');
    $children = [];
    for ($i = 0; $i < 100; $i++) {
        broadcast('a', $i);
        $child = pcntl_fork();
        if ($child === 0) {
            exit(0);
        }
        $children[] = $child;
    }
    foreach ($children as $child) {
        same(0, reap($child));
    }
    for ($i = 0; $i < 100; $i++) {
        same($i, $client->next()['data']);
    }
    check($hub->stop(), 'complete');
});

test('programs that PHP starts hold nothing of the hub', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
    $client = Client::subscribed($hub->url, 'a');
    // PHP's own streams may be inherited; the client's is one.
    $client->drop();
    eventually(fn () => Realtime\stats()['connections'] === 0, 'the client has gone');
    $client = new Tests\Process([PHP_BINARY, '-n', '-r', "\$c = stream_socket_client('tcp://127.0.0.1:{$hub->port}'); fwrite(\$c, \"GET /ws HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n\"); fgets(STDIN);"]);
    eventually(fn () => Realtime\stats()['connections'] === 1, 'a client of another process came');
    check(preg_grep('/event/', Tests\descriptors()) !== [], 'the hub has descriptors to inherit');
    foreach ([(new Tests\Process(['ls', '-l', '/proc/self/fd']))->output(), (string) shell_exec('ls -l /proc/self/fd')] as $listing) {
        check($listing !== '' && preg_match('/event|socket:/', $listing) === 0, $listing);
    }
    $client->write("\n");
    $hub->stop();
});
