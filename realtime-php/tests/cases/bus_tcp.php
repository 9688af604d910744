<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\ConfigError;
use Tests\{Client, HubProcess};

use function Tests\{check, contains, eventually, free_port, php, same, test, throws};

const SECRET = '0123456789abcdef0123456789abcdef';

/** A hub over TCP on a port of its own; its address. */
function hub(): array
{
    $address = 'tcp://127.0.0.1:' . free_port();
    return [new HubProcess(['socket' => $address, 'secret' => SECRET]), $address];
}

/** What a program of another container prints. */
function elsewhere(string $code, string $address, string $secret = SECRET): string
{
    return php($code, ['-d', "realtime.secret=$secret"], ['REALTIME_SOCKET' => $address])->output();
}

test('what a program in another container broadcasts reaches clients, in order, and its questions are answered', function () {
    [$hub, $address] = hub();
    $client = Client::subscribed($hub->url, 'a');
    $code = <<<'PHP'
        for ($i = 0; $i < 1000; $i++) broadcast('a', (string) $i);
        Realtime\batch(function () { for ($i = 1000; $i < 2000; $i++) broadcast('a', (string) $i); });
        same(2001, Realtime\publish('a', '2000')->offset);
        same([['name' => 'a', 'subscribers' => 1]], Realtime\channels());
        same([[], 0], [getChannelUsers('a'), disconnectUser('x')]);
        echo Realtime\stats()['published'];
        PHP;
    same('2001', elsewhere($code, $address));
    for ($i = 0; $i <= 2000; $i++) {
        same((string) $i, $client->next()['data']);
    }
    $hub->stop();
});

test('what a program has broadcast before it ends is published, however much it is', function () {
    [$hub, $address] = hub();
    $published = 0;
    foreach ([1, 30, 2000] as $count) {
        elsewhere("for (\$i = 0; \$i < $count; \$i++) broadcast('a', str_repeat('x', 200));", $address);
        $published += $count;
        eventually(fn () => elsewhere("echo Realtime\\stats()['published'];", $address) === (string) $published ?: null, "all $published have come");
    }
    $hub->stop();
});

test('a secret that is not the hub\'s is an outage and not an end', function () {
    [$hub, $address] = hub();
    $code = <<<'PHP'
        broadcast('a', 'x');
        throws(Realtime\Exception\Unavailable::class, 'it does not know the secret', fn () => Realtime\publish('a', 'x'));
        PHP;
    elsewhere($code, $address, strrev(SECRET));
    same('0', elsewhere("echo Realtime\\stats()['published'];", $address));
    $hub->stop();
});

test('a bus over TCP needs a secret of at least 32 bytes, on both sides', function () {
    $code = fn (string $text) => "throws(Realtime\\Exception\\ConfigError::class, 'realtime.secret: $text', fn () => Realtime\\publish('a', 'x'));";
    elsewhere($code('has 31 bytes'), 'tcp://127.0.0.1:1', substr(SECRET, 1));
    elsewhere($code('a bus over TCP needs a secret'), 'tcp://127.0.0.1:1', '');
    throws(ConfigError::class, 'setting `secret`: has 31 bytes', fn () => Realtime\start(['listen' => '127.0.0.1:0', 'socket' => 'tcp://127.0.0.1:0', 'secret' => substr(SECRET, 1)]));
    throws(ConfigError::class, 'names no host and port', fn () => Realtime\start(['listen' => '127.0.0.1:0', 'socket' => 'tcp://hub', 'secret' => SECRET]));
});

test('a name that nobody knows, or a hub that hangs, costs a deadline and no more', function () {
    $silent = stream_socket_server('tcp://127.0.0.1:0');
    $address = 'tcp://' . stream_socket_get_name($silent, false);
    $code = <<<'PHP'
        for ($i = 0, $seen = []; $i < 50; $i++) {
            try {
                Realtime\publish('a', 'x');
            } catch (Realtime\Exception\Unavailable $e) {
                $seen[] = str_contains($e->getMessage(), 'a moment ago') ? 'at once' : 'waited';
            }
        }
        $count = array_count_values($seen);
        check($count['waited'] <= 3 && array_sum($count) === 50, json_encode($count));
        PHP;
    elsewhere($code, $address);
    elsewhere("throws(Realtime\\Exception\\Unavailable::class, 'nobody.invalid', fn () => Realtime\\publish('a', 'x'));", 'tcp://nobody.invalid:7100');
});

test('the secret is not shown', function () {
    $said = elsewhere("phpinfo(INFO_MODULES); echo json_encode(ini_get('realtime.secret'));", 'tcp://127.0.0.1:1');
    same(1, substr_count($said, SECRET), 'only ini_get() gives it:');
    contains('realtime.secret => *** => ***', $said);
});

test('a hub that was started anew is reached within the next call', function () {
    [$hub, $address] = hub();
    $writer = php("while ((\$line = fgets(STDIN)) !== false) { broadcast('a', trim(\$line)); echo \"sent\\n\"; }", ['-d', 'realtime.secret=' . SECRET], ['REALTIME_SOCKET' => $address]);
    $client = Client::subscribed($hub->url, 'a');
    $writer->write("first\n");
    same('first', $client->next()['data']);
    foreach ([SIGTERM, SIGKILL] as $signal) {
        $hub->signal($signal);
        $hub->wait();
        $hub = new HubProcess(['socket' => $address, 'secret' => SECRET]);
        $client = Client::subscribed($hub->url, 'a');
        $writer->write("after $signal\n");
        same("after $signal", $client->next()['data']);
    }
    $hub->stop();
});
