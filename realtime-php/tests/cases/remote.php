<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require __DIR__ . '/../support/fpm.php';

use Realtime\Exception\{ConfigError, InvalidChannel, Timeout, Unavailable};
use Tests\{Client, Fpm, HubProcess, RedisProcess};

use function Tests\{attempt, check, contains, eventually, php, same, socket_path, test, throws, with_hub};

/** PHP code in a process that publishes straight to this Redis. */
function publisher(string $url, string $code, array $environment = []): Tests\Process
{
    return php($code, [], $environment + ['REALTIME_MODE' => 'remote', 'REALTIME_BROKER__URL' => $url]);
}

/** What that code prints of what it throws. */
function thrown(string $call): string
{
    return "try { $call; echo 'nothing'; } catch (Throwable \$e) { echo \$e::class, ': ', \$e->getMessage(); }";
}

/** Connections to the Redis, this one left out. */
function connections(string $url): int
{
    return substr_count(RedisProcess::ask($url, 'CLIENT', 'LIST', 'TYPE', 'NORMAL'), ' addr=') - 1;
}

/** Waits for a child; its exit status, or 128 + signal. */
function reap(int $child): int
{
    $status = eventually(fn () => pcntl_waitpid($child, $status, WNOHANG) === $child ? [$status] : null, 'the child ended')[0];
    return pcntl_wifexited($status) ? pcntl_wexitstatus($status) : 128 + pcntl_wtermsig($status);
}

with_hub(function (HubProcess $hub) {
    test('broadcastToUser() reaches the user\'s connections on another host, and except spares one', function () use ($hub) {
        [$one, $two, $other] = [new Client($hub->url), new Client($hub->url), new Client($hub->url)];
        foreach ([[$one, 42], [$two, 42], [$other, 43]] as [$client, $user]) {
            check($hub->setUser($client->id(), $user), 'known');
        }
        broadcastToUser(42, ['hello' => 'Zoë'], 'greeting');
        broadcastToUser('42', 2, options: ['except' => $one->id()]);
        broadcastToUser(42, 3);
        broadcastToUser(43, 'for 43');
        foreach ([[$one, [['hello' => 'Zoë'], 3]], [$two, [['hello' => 'Zoë'], 2, 3]], [$other, ['for 43']]] as [$client, $expected]) {
            same($expected, array_map(fn () => $client->next()['data'], $expected));
        }
    });

    test('a list of channels has a receipt each, in one call', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'one', 'two');
        $receipts = Realtime\publish(['one', 'two', 'one'], 'x');
        same([1, 1, 2], array_map(fn ($receipt) => $receipt->offset, $receipts));
        $got = array_map(fn () => $client->next()['channel'], range(1, 3));
        sort($got);
        same(['one', 'one', 'two'], $got);
    });

    test('what a channel floods with only a hub can conflate, and publishing there says so', function () {
        throws(InvalidChannel::class, 'channel `flood` has conflate_ms', fn () => Realtime\publish('flood', 'x'));
        throws(InvalidChannel::class, 'only a hub', fn () => broadcast('flood', 'x'));
    });

    test('what only a hub can answer is refused with a word, and none may be started', function () {
        foreach ([
            fn () => getChannelUsers('a'), fn () => disconnectUser('a'), fn () => Realtime\channels(), fn () => Realtime\stats(),
            fn () => count(Realtime\presence('a')), fn () => iterator_to_array(Realtime\events(0)),
            fn () => (new Realtime\Server())->on('message', fn () => null)->poll(0),
        ] as $call) {
            throws(ConfigError::class, 'realtime.mode is remote', $call);
        }
        throws(ConfigError::class, 'this process may not start a hub', fn () => Realtime\start(['listen' => '127.0.0.1:0']));
        throws(ConfigError::class, 'this process may not start a hub', fn () => Realtime\serve(['listen' => '127.0.0.1:0']));
    });

    test('off() and a fake keep everything from Redis', function () {
        $before = Realtime\publish('lowered', 1)->offset;
        $fake = Realtime\Testing\fake();
        broadcast('lowered', 'recorded');
        same(['recorded'], array_column($fake->recorded('lowered'), 'message'));
        $fake->restore();
        same($before + 1, Realtime\publish('lowered', 2)->offset);
        same('00', publisher(getenv('REALTIME_BROKER__URL'), "Realtime\\off(); broadcast('lowered', 'x'); echo (int) Realtime\\publish('lowered', 'x')->accepted, count(Realtime\\history('a')['messages']);")->output());
        same($before + 2, Realtime\publish('lowered', 3)->offset);
    });

    test('a forked child makes a connection of its own, and neither hears what is the other\'s', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'forked');
        Realtime\publish('forked', 'before');
        $connections = connections(getenv('REALTIME_BROKER__URL'));
        $child = pcntl_fork();
        if ($child === 0) {
            $last = Realtime\publish('forked', 'child of its own')->offset;
            connections(getenv('REALTIME_BROKER__URL')) === $connections + 1 || exit(2);
            for ($i = 0; $i < 300; $i++) {
                $offset = Realtime\publish('forked', "child $i")->offset;
                $offset > $last || exit(1);
                $last = $offset;
            }
            posix_kill(getmypid(), SIGKILL);
        }
        $last = 0;
        for ($i = 0; $i < 300; $i++) {
            $offset = Realtime\publish('forked', "parent $i")->offset;
            check($offset > $last, 'offsets grow');
            $last = $offset;
        }
        same(128 + SIGKILL, reap($child));
        same(603, Realtime\publish('forked', 'end')->offset);
        $got = [];
        for ($i = 0; $i < 603; $i++) {
            $data = $client->next()['data'];
            $got[strtok($data, ' ')][] = $data;
        }
        same(['before', 'child', 'parent', 'end'], array_values(array_intersect(['before', 'child', 'parent', 'end'], array_keys($got))));
        same('child of its own', array_shift($got['child']));
        foreach (['child', 'parent'] as $who) {
            same(array_map(fn ($i) => "$who $i", range(0, 299)), $got[$who]);
        }
    });

    test('the settings may stand in php.ini, and phpinfo() says the role without the password', function () {
        $socket = getenv('TEST_DIRECTORY') . '/redis.sock';
        $options = ['-d', 'realtime.mode=remote', '-d', "realtime.broker.url=\"unix://$socket?pass=geheim\"", '-d', 'realtime.broker.prefix=other'];
        $run = fn (array $command) => new Tests\Process(['env', '-u', 'REALTIME_MODE', '-u', 'REALTIME_BROKER__URL', PHP_BINARY, ...Tests\php_options(), ...$options, ...$command]);
        $info = $run(['--ri', 'realtime'])->output();
        contains('publisher to the hubs of other hosts, over their broker: realtime.mode is remote', $info);
        contains("redis at $socket, prefix other", $info);
        check(!str_contains($info, 'geheim'), $info);
        // The server wants no password: it says so, and nobody repeats it.
        $said = $run(['-r', thrown("Realtime\\publish('a', 'x')")])->output();
        contains("Unavailable: no connection to redis at $socket", $said);
        check(!str_contains($said, 'geheim'), $said);
    });

    test('another prefix is another world, and nobody publishes where no hub is', function () {
        $publish = thrown("Realtime\\publish('a', 'x')");
        contains('Realtime\Exception\Unavailable: no hub has been at redis', publisher(getenv('REALTIME_BROKER__URL'), $publish, ['REALTIME_BROKER__PREFIX' => 'other'])->output());
        foreach (['' => 'no broker is named: set realtime.broker.url', 'http://geheim@h' => 'broker.url: ', 'redis+sentinel://h' => 'broker.url: '] as $url => $said) {
            $output = publisher($url, $publish)->output();
            contains("Realtime\\Exception\\ConfigError: ", $output);
            contains($said, $output);
            check(!str_contains($output, 'geheim'), $output);
        }
        // An app is one of the hubs'.
        contains('InvalidMessage: there is no app `shop`', publisher(getenv('REALTIME_BROKER__URL'), $publish, ['REALTIME_APP' => 'shop'])->output());
    });

    test('workers of php-fpm keep their connection from request to request', function () use ($hub) {
        $fpm = new Fpm(['-d', 'log_errors=1'], children: 1, pool: 'clear_env = yes');
        $script = getenv('TEST_DIRECTORY') . '/publish.php';
        file_put_contents($script, "<?php echo Realtime\\publish('fpm', \$_GET['text'])->offset;");
        $client = Client::subscribed($hub->url, 'fpm');
        foreach (range(1, 20) as $offset) {
            same((string) $offset, $fpm->request($script, "text=$offset"));
            same((string) $offset, $client->next()['data']);
        }
        $fpm->stop(SIGTERM);
    });
}, ['channels' => [['match' => 'flood', 'conflate_ms' => 50]]]);

/** Redis, and a hub on another host that uses it; what they know outlives a restart. */
function world(): array
{
    $redis = new RedisProcess(['--appendonly', 'yes', '--appendfsync', 'always']);
    $hub = new HubProcess(['socket' => socket_path(), 'broker' => ['fence' => false], 'channels' => [['match' => 'kept', 'history' => ['size' => 10]]]]);
    eventually(fn () => attempt(fn () => Realtime\publish('warm up', 1)), 'the hub has said what it goes by');
    return [$redis, $hub];
}

test('a Redis that was started anew is reached within the next call; without one calls fail at once and say where they looked', function () {
    ini_set('error_log', $log = getenv('TEST_DIRECTORY') . '/php.log');
    [$redis, $hub] = world();
    $connections = connections($redis->url);
    for ($i = 0; $i < 100; $i++) {
        Realtime\publish('a', $i);
        broadcast('a', $i);
    }
    same($connections, connections($redis->url), 'one connection is kept:');
    $client = Client::subscribed($hub->url, 'kept');
    $redis->kill();
    @unlink($log);
    $e = throws(Unavailable::class, 'no connection to redis at ' . getenv('TEST_DIRECTORY') . '/redis.sock', fn () => Realtime\publish('a', 'x'));
    check($e->isRetryable(), 'it may be there later');
    for ($i = 0; $i < 100; $i++) {
        broadcast('a', 'x');
    }
    contains('realtime: broadcast() failed: no connection to redis', file_get_contents($log));
    $redis->start();
    check(Realtime\publish('a', 'after')->accepted, 'the first call');
    // The hub needs a moment to hear again; what it has not heard it looks for.
    Realtime\publish('kept', 'heard');
    same('heard', $client->next()['data']);
    $hub->stop();
});

test('a Redis that stands still costs one deadline; calls after it fail at once', function () {
    [$redis, $hub] = world();
    $redis->signal(SIGSTOP);
    $thrown = [];
    for ($i = 0; $i < 50; $i++) {
        try {
            Realtime\publish('a', 'x');
        } catch (Throwable $e) {
            $thrown[] = $e;
        }
    }
    same([50, Timeout::class], [count($thrown), $thrown[0]::class]);
    contains('may or may not have been accepted', $thrown[0]->getMessage());
    $paused = array_filter($thrown, fn ($e) => str_contains($e->getMessage(), 'did not answer a moment ago'));
    check(count($paused) >= 45, count($paused) . ' of 50 calls failed at once');
    $redis->signal(SIGCONT);
    eventually(fn () => attempt(fn () => Realtime\publish('a', 'again')), 'Redis answers again');
    $hub->stop();
});

test('auto: where no hub answers on this host calls go to Redis, and back to the hub as soon as one does', function () {
    [$redis, $far] = world();
    $client = Client::subscribed($far->url, 'a');
    $socket = socket_path();
    // It publishes a line of its input each, and says how many subscriptions of its own host heard it.
    $code = <<<'PHP'
        while (($line = fgets(STDIN)) !== false) {
            try {
                $said = Realtime\publish('a', trim($line))->matched;
            } catch (Throwable $e) {
                $said = $e::class;
            }
            echo trim($line) . " $said\n";
        }
        PHP;
    $process = php($code, [], ['REALTIME_MODE' => 'auto', 'REALTIME_BROKER__URL' => $redis->url, 'REALTIME_SOCKET' => $socket]);
    $publish = function (string $text) use ($process): string {
        $process->write("$text\n");
        return $process->expect("~^$text (.+)\n~m")[1];
    };
    same('0', $publish('far'));
    same('far', $client->next()['data']);
    // A hub without a broker, so that it can be told who has got a message.
    $near = new HubProcess(['socket' => $socket], ['REALTIME_BROKER__URL' => '']);
    $own = Client::subscribed($near->url, 'a');
    same(['1', 'near'], [$publish('near'), $own->next()['data']]);
    $near->stop();
    same(['0', 'far again'], [$publish('far again'), $client->next()['data']]);
    $near = new HubProcess(['socket' => $socket], ['REALTIME_BROKER__URL' => '']);
    $own = Client::subscribed($near->url, 'a');
    same(['1', 'near again'], [$publish('near again'), $own->next()['data']]);
    // One that stands still takes one call with it, and the next ones go the other way.
    $near->freeze();
    same(Timeout::class, $publish('frozen'));
    same(['0', 'around it'], [$publish('around it'), $client->next()['data']]);
    $near->signal(SIGCONT);
    $near->stop();
    $far->stop();
});
