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
            fn () => Realtime\channels(), fn () => Realtime\stats(), fn () => iterator_to_array(Realtime\events(0)),
            fn () => (new Realtime\Server())->on('message', fn () => null)->poll(0),
        ] as $call) {
            throws(ConfigError::class, 'realtime.mode is remote', $call);
        }
        throws(ConfigError::class, 'this process may not start a hub', fn () => Realtime\start(['listen' => '127.0.0.1:0']));
        throws(ConfigError::class, 'this process may not start a hub', fn () => Realtime\serve(['listen' => '127.0.0.1:0']));
    });

    test('users of all hubs are listed, counted and disconnected; presence is what Redis knows', function () use ($hub) {
        $other = new HubProcess(['socket' => socket_path(), 'channels' => [['match' => 'shown', 'presence' => true], ['match' => 'flood', 'conflate_ms' => 50]]]);
        $here = function (HubProcess $hub, string $id, ?array $info, string $channel): Client {
            $client = new Client($hub->url);
            eventually(fn () => $hub->setUser($client->id(), $id, $info), 'the user\'s own channel is heard');
            // Its connections with Redis may still be on their way.
            do {
                $client->send(['action' => 'subscribe', 'channel' => $channel]);
                do {
                    $type = json_decode($client->read()[1], true)['type'];
                } while (!in_array($type, ['subscribed', 'error'], true));
            } while ($type === 'error');
            return $client;
        };
        eventually(fn () => str_contains(RedisProcess::ask(getenv('REALTIME_BROKER__URL'), 'HGET', 'realtime:rules', 'd'), 'shown'), 'the second hub has said what it goes by');
        foreach (['everywhere', 'shown'] as $channel) {
            // Rules are believed for five seconds; until then a channel that is shown is gathered, which is as true.
            $clients = [$here($hub, 'ada', ['name' => 'Ada'], $channel), $here($other, 'ada', ['name' => 'Ada'], $channel), $here($other, 'bob', null, $channel)];
            $expected = [['id' => 'ada', 'info' => ['name' => 'Ada'], 'connections' => 2], ['id' => 'bob', 'info' => null, 'connections' => 1]];
            eventually(fn () => getChannelUsers($channel) === $expected, "all are listed on $channel");
            $presence = Realtime\presence($channel);
            same([2, $expected, true, false], [count($presence), $presence->users(), $presence->has('bob'), $presence->has('eve')]);
            same(2, disconnectUser('ada', 4011, 'away'));
            same([4011, 4011], [$clients[0]->closeCode(), $clients[1]->closeCode()]);
            same(0, disconnectUser('ada'));
        }
        $other->stop();
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
        foreach (["Realtime\\publish('a', 'x')", "getChannelUsers('a')", "disconnectUser('a')"] as $call) {
            contains('InvalidMessage: there is no app `shop`', publisher(getenv('REALTIME_BROKER__URL'), thrown($call), ['REALTIME_APP' => 'shop'])->output());
        }
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

test('a hub that does not answer is missing, and the log says so; where none does, or none is, calls say that', function () {
    ini_set('error_log', $log = getenv('TEST_DIRECTORY') . '/php.log');
    @unlink($log);
    [$redis, $hub] = world();
    $client = new Client($hub->url);
    eventually(fn () => $hub->setUser($client->id(), 'ada'), 'known');
    $client->send(['action' => 'subscribe', 'channel' => 'a']);
    $client->next('subscribed');
    eventually(fn () => array_column(getChannelUsers('a'), 'id') === ['ada'], 'she is listed');
    // One that says that it is there, and is not.
    RedisProcess::ask($redis->url, 'ZADD', 'realtime:hubs', '9000000000000000', '00000000000000ff');
    eventually(function () use ($log) {
        // A line a second at most: the one of an earlier failure may have been first.
        same(true, in_array(array_column(getChannelUsers('a'), 'id'), [['ada'], []], true));
        return str_contains((string) @file_get_contents($log), 'realtime: getChannelUsers(): 1 of 2 hubs did not answer, and what they have is missing');
    }, 'the log says what is missing');
    $hub->stop();
    throws(Timeout::class, 'none of 1 hubs has answered', fn () => count(Realtime\presence('a')));
    throws(Timeout::class, 'may or may not be done', fn () => Realtime\presence('a')->has(1));
    same([[], 0], [getChannelUsers('a'), disconnectUser('ada')]);
    contains('failed: none of 1 hubs has answered', file_get_contents($log));
    // Redis is well meanwhile: nobody leaves it alone because of that.
    check(Realtime\publish('kept', 'x')->accepted, 'published');
    RedisProcess::ask($redis->url, 'DEL', 'realtime:hubs');
    $e = throws(Unavailable::class, 'there is nobody to ask', fn () => Realtime\presence('a')->users());
    check($e->isRetryable(), 'one may be there later');
    same([[], 0], [getChannelUsers('a'), disconnectUser('ada', options: ['ban_ms' => 1000])]);
});

test('without Redis a hub cannot say who is on a channel that it shows: that may pass, whether it is asked over the bus or in its own process', function () {
    [$redis, $hub] = world();
    $redis->kill();
    $ask = 'try { count(Realtime\\presence("presence-x")); } catch (Realtime\Exception\RealtimeException $e) { echo $e::class, $e->isRetryable() ? " that may pass" : " for ever"; }';
    $start = 'Realtime\start(["listen" => "127.0.0.1:0"]);';
    foreach ([['bus', '', $hub->socket], ['embedded', $start, '']] as [$mode, $before, $socket]) {
        eventually(function () use ($mode, $before, $socket, $ask, $redis) {
            $said = php($before . $ask, [], ['REALTIME_MODE' => $mode, 'REALTIME_SOCKET' => $socket, 'REALTIME_BROKER__URL' => $redis->url])->output();
            contains('that may pass', $said);
            return str_contains($said, 'Unavailable');
        }, "Unavailable ($mode)");
    }
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
                $said = trim($line) === 'users' ? implode(',', array_column(Realtime\presence('a')->users(), 'id')) : Realtime\publish('a', trim($line))->matched;
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
    eventually(fn () => $far->setUser($client->id(), 'ada'), 'known');
    eventually(fn () => $publish('users') === 'ada', 'the hubs of other hosts are asked');
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
