<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\{ConfigError, Unavailable};
use Tests\Client;

use function Tests\{check, contains, descriptors, eventually, free_port, php, same, test, threads, throws};

const CONFIG = ['listen' => '127.0.0.1:0', 'shards' => 2];

test('before start() publish() throws, and the global functions log at most once a second', function () {
    $log = tempnam(sys_get_temp_dir(), 'realtime');
    $code = <<<'PHP'
        throws(Realtime\Exception\Unavailable::class, 'Realtime\start()', fn () => Realtime\publish('a', 'x'));
        throws(Realtime\Exception\Unavailable::class, 'Realtime\start()', fn () => Realtime\channels());
        throws(Realtime\Exception\Unavailable::class, 'Realtime\start()', fn () => Realtime\stats());
        throws(Realtime\Exception\InvalidChannel::class, '', fn () => broadcast(['#x'], 'x'));
        set_error_handler(fn ($level, $message) => throw new ErrorException($message));
        for ($i = 0; $i < 1000; $i++) {
            broadcast('a', 'x');
            broadcast('a', ['x']);
            broadcastToUser(1, 'x');
        }
        echo json_encode([getChannelUsers('a'), disconnectUser('a')]);
        PHP;
    $started = microtime(true);
    same('[[],0]', php($code, ['-d', "error_log=$log"])->output());
    $lines = file($log);
    unlink($log);
    check(count($lines) >= 1 && count($lines) <= 2 + (microtime(true) - $started), 'wrote ' . count($lines) . ' lines');
    contains('realtime: broadcast() failed: no hub runs in this process', $lines[0]);
});

test('what was logged instead of thrown is counted', function () {
    $code = <<<'PHP'
        for ($i = 0; $i < 10; $i++) {
            broadcast('a', 'x');
        }
        Realtime\start(['listen' => '127.0.0.1:0']);
        echo Realtime\stats()['failed_calls'];
        PHP;
    same('10', php($code, ['-d', 'error_log=/dev/null'])->output());
});

test('realtime.on_error = throw lets the global functions throw', function () {
    $code = <<<'PHP'
        foreach ([fn () => broadcast('a', 'x'), fn () => broadcastToUser(1, 'x'), fn () => getChannelUsers('a'), fn () => disconnectUser(1)] as $call) {
            throws(Realtime\Exception\Unavailable::class, 'no hub runs', $call);
        }
        PHP;
    php($code, ['-d', 'realtime.on_error=throw'])->output();
});

test('start() gives port and url, and says on stderr what it did', function () {
    $process = php("\$hub = Realtime\\start(['listen' => '127.0.0.1:0']); echo json_encode([\$hub->port, \$hub->url, \$hub->isRunning()]);");
    [$port, $url, $running] = json_decode($process->output(), true);
    same("ws://127.0.0.1:$port/ws", $url);
    check($port > 0 && $running, 'it runs');
    check(preg_match("~^realtime: embedded hub, listening on $url, bus for other processes at \\S+\\.sock\n$~", $process->errors()) === 1, $process->errors());
    $process = php("Realtime\\start(['listen' => '127.0.0.1:0', 'socket' => '']);");
    $process->output();
    contains(', no bus for other processes', $process->errors());
});

test('a second start() with the same configuration gives the same hub, with another one it throws', function () {
    $hub = Realtime\start(CONFIG);
    $again = Realtime\start(CONFIG);
    same([$hub->port, true], [$again->port, $again == $hub]);
    // The same, written otherwise.
    same($hub->port, Realtime\start(CONFIG + ['limits' => ['max_fragments' => 64]])->port);
    $e = throws(ConfigError::class, 'another configuration runs in this process', fn () => Realtime\start(['shards' => 1] + CONFIG));
    contains((string) $hub->port, $e->getMessage());
    check($again->stop(), 'either handle stops it');
    same(false, $hub->isRunning());
    check($hub->stop(), 'stopping twice is fine');
    throws(Unavailable::class, '', fn () => Realtime\publish('a', 'x'));
});

test('after stop() another hub may start, and the old handle does not touch it', function () {
    $old = Realtime\start(CONFIG);
    $old->stop();
    $new = Realtime\start(['shards' => 1] + CONFIG);
    $old->stop();
    same([false, true], [$old->isRunning(), $new->isRunning()]);
    check(Realtime\publish('a', 'x')->accepted, 'it works');
    $new->stop();
});

test('stop() tells clients to go and frees the port', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:' . free_port()] + CONFIG);
    $client = Client::subscribed($hub->url, 'a');
    check($hub->stop(), 'complete');
    same(1001, $client->closeCode());
    check(@stream_socket_client("tcp://127.0.0.1:{$hub->port}", $code, $message, 1) === false, 'nobody listens');
});

test('stop() with traffic in flight delivers what was accepted, then closes', function () {
    $hub = Realtime\start(CONFIG);
    $clients = array_map(fn () => Client::subscribed($hub->url, 'busy'), range(1, 5));
    for ($i = 0; $i < 3000; $i++) {
        Realtime\publish('busy', $i);
    }
    // The clients read only after the stop: small messages fit into socket buffers and outboxes.
    check($hub->stop(30_000), 'complete');
    foreach ($clients as $client) {
        for ($i = 0; $i < 3000; $i++) {
            same($i, $client->next()['data']);
        }
        same(1001, $client->closeCode());
    }
});

test('stats() follow the hub', function () {
    $hub = Realtime\start(CONFIG);
    $clients = [Client::subscribed($hub->url, 'a', 'b'), Client::subscribed($hub->url, 'a')];
    Realtime\publish('a', 'x');
    $stats = Realtime\stats();
    same([2, 3, 2, 1], [$stats['connections'], $stats['subscriptions'], $stats['channels'], $stats['published']]);
    unset($clients);
    eventually(fn () => Realtime\stats()['connections'] === 0, 'the clients have gone');
    $hub->stop();
});

test('stop() checks its argument', function () {
    $hub = Realtime\start(CONFIG);
    throws(ValueError::class, '($timeoutMs)', fn () => $hub->stop(-1));
    $hub->stop(0);
    // Zero is allowed; what is left ends by itself.
    eventually(fn () => threads() === 1, 'its threads have ended');
});

test('a port in use is Unavailable and names the address', function () {
    $address = '127.0.0.1:' . free_port();
    $server = stream_socket_server("tcp://$address");
    $e = throws(Unavailable::class, $address, fn () => Realtime\start(['listen' => $address]));
    same(true, $e->isRetryable());
    fclose($server);
    $hub = Realtime\start(['listen' => $address]);
    same("ws://$address/ws", $hub->url);
    $hub->stop();
});

test('a handle cannot be made, serialized or given properties', function () {
    $hub = Realtime\start(CONFIG);
    throws(Error::class, 'private', fn () => new Realtime\Hub());
    throws(Exception::class, 'not allowed', fn () => serialize($hub));
    throws(Error::class, 'readonly', function () use ($hub) {
        $hub->port = 1;
    });
    throws(Error::class, 'dynamic property', function () use ($hub) {
        $hub->other = 1;
    });
    same($hub->port, (clone $hub)->port);
    $hub->stop();
});

test('fifty start/stop cycles leave no thread and no descriptor', function () {
    // A process that connects to each hub, and leaves when it is told to.
    $guest = php('for ($visit = 1; $url = fgets(STDIN); $visit++) { $client = Tests\\Client::subscribed(trim($url), "a"); echo "visit $visit\n"; $client->next(); same(1001, $client->closeCode()); $client->drop(); }');
    $visit = 0;
    $cycle = function () use ($guest, &$visit) {
        $hub = Realtime\start(CONFIG);
        $guest->write("{$hub->url}\n");
        $guest->expect('~^visit ' . ++$visit . '$~m');
        same(1, Realtime\publish('a', 'x')->matched);
        check($hub->stop(30_000), 'the stop is complete');
    };
    $cycle();
    gc_collect_cycles();
    [$threads, $open] = [threads(), descriptors()];
    for ($i = 0; $i < 50; $i++) {
        $cycle();
    }
    gc_collect_cycles();
    eventually(fn () => threads() === $threads, "there are $threads threads again");
    same($open, descriptors());
});

test('exit() with a running hub ends the process with its status', function () {
    $process = php("Realtime\\start(['listen' => '127.0.0.1:0']); for (\$i = 0; \$i < 1000; \$i++) broadcast('a', 'x'); exit(7);");
    same(7, $process->wait());
});

test('a fatal error with a running hub ends the process as it would without', function () {
    foreach (['undefined_function();', '$a = str_repeat("x", 1 << 40);', 'throw new Exception("end");', 'trigger_error("x", E_USER_ERROR);'] as $fatal) {
        same(255, php("Realtime\\start(['listen' => '127.0.0.1:0']); broadcast('a', 'x'); $fatal")->wait(), $fatal);
    }
});

test('a fatal error inside a conversion leaves a process that ends cleanly', function () {
    $code = <<<'PHP'
        final class Fatal implements JsonSerializable { function jsonSerialize(): mixed { return str_repeat('x', 1 << 40); } }
        Realtime\start(['listen' => '127.0.0.1:0']);
        register_shutdown_function(function () { broadcast('a', 'still works'); echo 'shutdown ', Realtime\publish('a', 'x')->offset; });
        broadcast('a', new Fatal);
        PHP;
    $process = php($code);
    same([255, 'shutdown 2'], [$process->wait(), $process->written()]);
});

test('connected clients see the end of the process', function () {
    $process = php("Realtime\\start(['listen' => '127.0.0.1:0']); fgets(STDIN); exit(0);");
    $client = Client::subscribed($process->expect('~ws://(\S+)/ws~')[1], 'a');
    $process->write("\n");
    same(1001, $client->closeCode());
    same(0, $process->wait());
});

test('php -v, -i and -m start no thread and take no port', function () {
    foreach (['-v', '-m', '-i', '--ri=realtime'] as $option) {
        // A hub in MINIT would fail on the port that this process holds, or print where it listens.
        $process = new Tests\Process([PHP_BINARY, ...Tests\php_options(), ...($option[1] === '-' ? ['--ri', 'realtime'] : [$option])], ['REALTIME_LISTEN' => '127.0.0.1:0']);
        $output = $process->output();
        check(!str_contains($output . $process->errors(), 'listening on'), $option);
    }
    $code = "echo count(scandir('/proc/self/task')) - 2, ' '; foreach (Tests\\descriptors() as \$target) if (str_contains(\$target, 'socket') || str_contains(\$target, 'event')) echo \$target;";
    same('1 ', php($code)->output());
});
