<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\{ConfigError, InvalidChannel, InvalidMessage, MessageTooLarge, Timeout, Unavailable};
use Tests\{Client, HubProcess};

use function Tests\{check, contains, descriptors, eventually, php, same, socket_path, test, throws};

ini_set('error_log', getenv('TEST_DIRECTORY') . '/php.log');

/** The classes of what fifty calls in a row throw. */
function fifty(callable $call): array
{
    $thrown = [];
    for ($i = 0; $i < 50; $i++) {
        try {
            $call();
            $thrown[] = null;
        } catch (Throwable $e) {
            $thrown[] = $e;
        }
    }
    return $thrown;
}

test('nothing connects before the first call, and then one connection is kept', function () {
    $hub = new HubProcess();
    $sockets = fn () => count(array_filter(descriptors(), fn ($target) => str_starts_with($target, 'socket:')));
    $before = $sockets();
    Realtime\publish('a', 1);
    for ($i = 0; $i < 100; $i++) {
        Realtime\publish('a', $i);
        broadcast('a', $i);
        getChannelUsers('a');
    }
    same($before + 1, $sockets());
    $hub->stop();
});

test('a hub that was started anew is reached within the next call', function () {
    $hub = new HubProcess();
    $first = Realtime\publish('a', 1);
    foreach ([SIGTERM, SIGKILL] as $signal) {
        $hub->signal($signal);
        $hub->wait();
        $hub = new HubProcess();
        $client = Client::subscribed($hub->url, 'a');
        broadcast('a', 'first after the restart');
        same('first after the restart', $client->next()['data']);
        $receipt = Realtime\publish('a', 2);
        same([true, 2], [$receipt->epoch !== $first->epoch, $receipt->offset]);
    }
    $hub->stop();
});

test('without a hub the global functions log once a second and go on, and publish() says where it looked', function () {
    $log = ini_get('error_log');
    @unlink($log);
    $started = microtime(true);
    for ($i = 0; $i < 1000; $i++) {
        broadcast('a', 'x');
    }
    same([[], 0], [getChannelUsers('a'), disconnectUser('x')]);
    $lines = file($log);
    check(count($lines) <= 2 + (microtime(true) - $started), 'wrote ' . count($lines) . ' lines');
    contains('realtime: broadcast() failed: ', $lines[0]);
    $e = throws(Unavailable::class, getenv('REALTIME_SOCKET'), fn () => Realtime\publish('a', 'x'));
    check($e->isRetryable(), 'it may be there later');
    foreach (['channels', 'stats'] as $function) {
        throws(Unavailable::class, '', "Realtime\\$function");
    }
});

test('a hub that stands still costs one deadline; calls after it fail at once', function () {
    $hub = new HubProcess();
    Realtime\publish('a', 1);
    $hub->freeze();
    $thrown = fifty(fn () => Realtime\publish('a', 'x'));
    same(Timeout::class, $thrown[0]::class);
    $deadlines = array_filter($thrown, fn ($e) => $e instanceof Timeout);
    // The second call may come after the pause when this machine is busy; it is not what fifty deadlines would be.
    check(count($deadlines) <= 3, count($deadlines) . ' calls ran into their deadline');
    foreach (array_filter($thrown, fn ($e) => !$e instanceof Timeout) as $e) {
        same(Unavailable::class, $e::class);
        contains('did not answer a moment ago', $e->getMessage());
    }
    broadcast('a', 'is logged');
    $hub->signal(SIGCONT);
    $receipt = eventually(function () {
        try {
            return Realtime\publish('a', 'again');
        } catch (Realtime\Exception\RealtimeException $e) {
            check($e->isRetryable(), $e->getMessage());
            return null;
        }
    }, 'the hub answers again');
    check($receipt->accepted, 'accepted');
    $hub->stop();
});

test('mistakes are thrown before anything is sent', function () {
    $hub = new HubProcess();
    $published = Realtime\stats()['published'];
    foreach (['broadcast', 'Realtime\publish'] as $function) {
        throws(InvalidChannel::class, 'channel name', fn () => $function('#x', 'x'));
        throws(InvalidMessage::class, 'event name', fn () => $function('a', 'x', 'pusher:x'));
        throws(InvalidMessage::class, 'not valid JSON', fn () => $function('a', '{', 'e', ['json' => true]));
        throws(InvalidMessage::class, 'id has 129 bytes', fn () => $function('a', 'x', 'e', ['id' => str_repeat('x', 129)]));
        throws(MessageTooLarge::class, 'the limit is 262144', fn () => $function(['a', 'b'], str_repeat('x', 262145)));
        throws(InvalidMessage::class, 'names 256 connections, the limit is 255', fn () => $function('a', 'x', 'e', ['except' => array_fill(0, 256, '1.2')]));
    }
    throws(InvalidMessage::class, 'event name', fn () => broadcastToUser(1, 'x', ''));
    $stats = Realtime\stats();
    same([$published, 0, 0], [$stats['published'], $stats['bus_refused'], $stats['bus_errors']]);
    $hub->stop();
});

test('the process\' own limit counts before the call, the hub\'s when it answers', function () {
    $hub = new HubProcess(['limits' => ['publication_bytes' => 10]]);
    $e = throws(MessageTooLarge::class, 'limit is 10', fn () => Realtime\publish('a', '12345678901'));
    same(false, $e->isRetryable());
    $code = "throws(Realtime\\Exception\\MessageTooLarge::class, 'limit is 5', fn () => broadcast('a', '123456')); broadcast('a', '12345'); echo Realtime\\stats()['published'];";
    $before = Realtime\stats()['published'];
    $environment = ['REALTIME_SOCKET' => $hub->socket, 'REALTIME_LIMITS__PUBLICATION_BYTES' => '5'];
    same((string) ($before + 1), php($code, [], $environment)->output());
    $hub->stop();
});

test('what is wrong with settings of the hub does not concern its clients', function () {
    $hub = new HubProcess();
    $file = getenv('TEST_DIRECTORY') . '/hub.toml';
    // Without auth.mode no hub starts on this address.
    file_put_contents($file, "listen = \"0.0.0.0:8080\"\nsocket = \"$hub->socket\"\n");
    $code = "echo json_encode(Realtime\\publish('a', 'x')->accepted);";
    same('true', (new Tests\Process(['env', '-u', 'REALTIME_SOCKET', PHP_BINARY, ...Tests\php_options(), '-d', "realtime.config=$file", '-r', $code]))->output());
    $hub->stop();
});

test('an empty socket means no bus, for hubs and for their clients', function () {
    $code = <<<'PHP'
        throws(Realtime\Exception\Unavailable::class, 'realtime.socket is set empty', fn () => Realtime\publish('a', 'x'));
        throws(Realtime\Exception\Unavailable::class, 'realtime.socket is set empty', fn () => Realtime\publish('a', 'x'));
        $hub = Realtime\start(['listen' => '127.0.0.1:0']);
        Realtime\publish('a', 'x');
        $hub->stop();
        PHP;
    // proc_open() leaves empty variables out.
    php($code, ['-d', 'realtime.socket='], ['REALTIME_SOCKET' => ''])->output();
    (new Tests\Process(['env', 'REALTIME_SOCKET=', PHP_BINARY, ...Tests\php_options(), '-r', "require '" . dirname(__DIR__) . "/support/harness.php'; use function Tests\\throws; $code"]))->output();
});

test('a second hub on a held socket is a ConfigError that says what to do', function () {
    $hub = new HubProcess();
    $e = throws(ConfigError::class, "$hub->socket is served by another hub", fn () => Realtime\start(['listen' => '127.0.0.1:0']));
    contains('set `socket` to another path, or to "" for no bus', $e->getMessage());
    $own = Realtime\start(['listen' => '127.0.0.1:0', 'socket' => '']);
    // A hub of one's own comes first.
    $client = Client::subscribed($own->url, 'a');
    broadcast('a', 'to my own');
    same('to my own', $client->next()['data']);
    $own->stop();
    same(0, Realtime\publish('a', 'to the other')->matched);
    $hub->stop();
});

test('what stands at the path and is not ours is left alone', function () {
    $path = socket_path();
    file_put_contents($path, 'precious');
    throws(ConfigError::class, 'not a socket, refusing to replace it', fn () => Realtime\start(['listen' => '127.0.0.1:0', 'socket' => $path]));
    same('precious', file_get_contents($path));
});

test('two floods of four processes at once lose nothing and keep each one\'s order', function () {
    $each = 10_000;
    $hub = new HubProcess();
    foreach ([1, 2] as $round) {
        $client = Client::subscribed($hub->url, 'flood');
        $flood = "for (\$i = 0; \$i < $each; \$i++) { broadcast('flood', \"\$argv[1] \$i\"); } echo Realtime\\stats()['failed_calls'];";
        $writers = [];
        for ($writer = 0; $writer < 4; $writer++) {
            $writers[] = new Tests\Process([PHP_BINARY, ...Tests\php_options(), '-r', $flood, '--', (string) $writer]);
        }
        $next = [0, 0, 0, 0];
        for ($i = 0; $i < 4 * $each; $i++) {
            [$writer, $sequence] = explode(' ', $client->next()['data']);
            same($next[$writer]++, (int) $sequence, "writer $writer:");
        }
        same(['0', '0', '0', '0'], array_map(fn ($process) => $process->output(), $writers));
        $client->drop();
    }
    same(8 * $each, Realtime\stats()['published']);
    $hub->stop();
});

test('a forked child has a connection of its own', function () {
    $hub = new HubProcess();
    $client = Client::subscribed($hub->url, 'fork');
    Realtime\publish('fork', 'parent 0');
    $children = [];
    foreach (['a', 'b'] as $name) {
        $child = pcntl_fork();
        if ($child === 0) {
            for ($i = 1; $i <= 500; $i++) {
                // An answer to another process would have another offset or none at all.
                Realtime\publish("own-$name", 'x')->offset === $i || exit(1);
                broadcast('fork', "$name $i");
            }
            exit(0);
        }
        $children[] = $child;
    }
    for ($i = 1; $i <= 500; $i++) {
        same($i, Realtime\publish('own-parent', 'x')->offset);
        broadcast('fork', "parent $i");
    }
    foreach ($children as $child) {
        pcntl_waitpid($child, $status);
        same([true, 0], [pcntl_wifexited($status), pcntl_wexitstatus($status)]);
    }
    $next = ['parent' => 0, 'a' => 1, 'b' => 1];
    for ($i = 0; $i < 1501; $i++) {
        [$name, $number] = explode(' ', $client->next()['data']);
        same($next[$name]++, (int) $number, "$name:");
    }
    $hub->stop();
});

test('two sites on one hub have channels of their own (realtime.app)', function () {
    $hub = new HubProcess(['apps' => [['name' => 'shop'], ['name' => 'blog']]]);
    $in = fn (string $app, string $code) => php($code, ['-d', "realtime.app=$app"], ['REALTIME_SOCKET' => $hub->socket])->output();
    $publish = "broadcast('a', 'x'); echo Realtime\\publish('a', 'x', options: ['app' => '%s'])->offset;";
    same(['2', '2', '4', '2'], [$in('shop', sprintf($publish, 'shop')), $in('blog', sprintf($publish, '')), $in('shop', sprintf($publish, 'shop')), $in('', sprintf($publish, 'default'))]);
    $in('shop', "throws(Realtime\\Exception\\ConfigError::class, 'are in `shop`', fn () => broadcast('a', 'x', options: ['app' => 'blog']));");
    $in('shpo', "throws(Realtime\\Exception\\InvalidMessage::class, 'did you mean `shop`', fn () => Realtime\\publish('a', 'x'));");
    $hub->stop();
});

// What belongs to other users can only be shown by one who may become them.
if (posix_geteuid() === 0) {
    test('another user may publish and ask, not disconnect', function () {
        chmod(getenv('TEST_DIRECTORY'), 0711);
        $hub = new HubProcess(['socket_mode' => '0666']);
        $client = Client::subscribed($hub->url, 'a');
        $code = <<<'PHP'
            posix_setgid(65534) && posix_setuid(65534) || exit(1);
            same([true, []], [Realtime\publish('a', 'x')->accepted, getChannelUsers('a')]);
            throws(Realtime\Exception\Unauthorized::class, "only the hub's own user", fn () => disconnectUser('x'));
            PHP;
        php($code, [], ['REALTIME_SOCKET' => $hub->socket])->output();
        same('x', $client->next()['data']);
        $hub->stop();
    });

    test('the usual path is the user\'s own directory, where clients find it; a stranger\'s directory is not used', function () {
        $directory = sys_get_temp_dir() . '/realtime-test-' . bin2hex(random_bytes(6));
        mkdir($directory, 0700);
        chown($directory, 65534);
        $run = fn (string $code) => new Tests\Process(['env', '-u', 'REALTIME_SOCKET', "XDG_RUNTIME_DIR=$directory", PHP_BINARY, ...Tests\php_options(), '-r', "require '" . dirname(__DIR__) . "/support/harness.php'; posix_setuid(65534); $code"]);
        $hub = $run("exit(Realtime\\serve(['listen' => '127.0.0.1:0']));");
        $hub->expect("~bus for other processes at $directory/realtime/realtime.sock\n~");
        if (!file_exists('/run/realtime/realtime.sock')) {
            same('1', $run("echo Realtime\\publish('a', 'x')->offset;")->output());
        }
        $hub->signal(SIGTERM);
        same(0, $hub->wait());
        // Whoever made it may have prepared it.
        throws(ConfigError::class, "$directory belongs to another user", function () use ($directory) {
            posix_seteuid(1);
            try {
                Realtime\start(['listen' => '127.0.0.1:0', 'socket' => "$directory/hub.sock"]);
            } finally {
                posix_seteuid(0);
            }
        });
        exec('rm -r ' . escapeshellarg($directory));
    });

    test('a hub in a directory that anybody could have made is not trusted', function () {
        $directory = sys_get_temp_dir() . '/realtime-test-' . bin2hex(random_bytes(6));
        mkdir($directory, 0711);
        chown($directory, 65534);
        $socket = "$directory/hub.sock";
        $stranger = php("posix_setuid(65534); Realtime\\serve(['listen' => '127.0.0.1:0', 'socket_mode' => '0666']);", [], ['REALTIME_SOCKET' => $socket]);
        $stranger->expect('/bus for other processes/');
        $code = "posix_setuid(1); throws(Realtime\\Exception\\Unavailable::class, 'served by user 65534', fn () => Realtime\\publish('a', 'x'));";
        php($code, [], ['REALTIME_SOCKET' => $socket])->output();
        $stranger->signal(SIGTERM);
        $stranger->wait();
        exec('rm -r ' . escapeshellarg($directory));
    });
}
