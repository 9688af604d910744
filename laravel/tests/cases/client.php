<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use Realtime\Exception\InvalidChannel;
use Realtime\Exception\InvalidMessage;
use Realtime\Exception\MessageTooLarge;
use Realtime\Exception\Timeout;
use Realtime\Exception\Unavailable;
use Realtime\Laravel\Client\BusClient;
use Realtime\Laravel\Client\Publication;
use Realtime\Laravel\Client\Runtime;
use Realtime\Laravel\Client\SocketId;
use Tests\Client;
use Tests\Hub;

use function Tests\check;
use function Tests\contains;
use function Tests\eventually;
use function Tests\same;
use function Tests\socket_path;
use function Tests\test;
use function Tests\throws;
use function Tests\with_program;

enum Channels: string
{
    case News = 'news';
}

/** A server that speaks what the test says instead of the bus; the path of its socket. */
function impostor(callable $serve): array
{
    $path = socket_path();
    $listener = stream_socket_server("unix://$path");
    $pid = pcntl_fork();
    if ($pid === 0) {
        $serve($listener);
        posix_kill(getmypid(), SIGKILL);
    }

    return [$path, function () use ($pid) {
        posix_kill($pid, SIGKILL);
        pcntl_waitpid($pid, $status);
    }];
}

/** What a call throws for an answer that is none. Whoever gives it may take its time: then the call is made again. */
function refused(array $sockets, ?string $secret = null): Unavailable
{
    return eventually(function () use ($sockets, $secret) {
        try {
            (new BusClient($sockets, $secret))->publish([new Publication('c', false, 'e', Publication::TEXT, 'x')]);
        } catch (Unavailable $e) {
            return $e;
        } catch (Timeout) {
            return null;
        }
        throw new Tests\Failed('a receipt was believed');
    }, 'there was an answer');
}

test('socket ids become the two numbers that the bus has, whatever their size', function () {
    foreach ([['1.2', 1, 2], ['9223372036854775807.0', PHP_INT_MAX, 0]] as [$id, $first, $second]) {
        same(pack('PP', $first, $second), SocketId::pack($id));
    }
    same(str_repeat("\xff", 16), SocketId::pack('18446744073709551615.18446744073709551615'));
    same("\0\0\0\0\0\0\0\x80" . pack('P', 4294967296), SocketId::pack('9223372036854775808.4294967296'));
    foreach (['', '1', '1.', '.1', '1.2.3', '-1.2', '1.18446744073709551616', '1.2x', "1.2\n"] as $id) {
        same(false, SocketId::isValid($id), "$id:");
    }
    same(true, SocketId::isValid('0.0'));
});

with_program(function (Hub $hub) {
    test('every kind of message arrives as the extension would send it', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'news');
        $json = new class implements JsonSerializable {
            public function jsonSerialize(): mixed
            {
                return ['a/b' => 'ü', 'one' => 1.0];
            }
        };
        foreach ([['text', 'text'], ['', ''], [5, 5], [1.0, 1.0], [null, null], [true, true], [['x' => []], ['x' => []]], [Channels::News, 'news'], [$json, ['a/b' => 'ü', 'one' => 1.0]]] as [$sent, $expected]) {
            Realtime\publish(Channels::News, $sent);
            same($expected, $client->next()['data']);
        }
        Realtime\publish('news', '{"a": 1}', options: ['json' => true]);
        same(['a' => 1], $client->next()['data']);
        Realtime\publish('news', "\xff\0", options: ['binary' => true]);
        check(str_ends_with($client->read()[1], "\xff\0"), 'bytes come in a binary frame');
    });

    test('receipts count, and repeats of a key are not sent again', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'counted');
        [$first, $second] = [Realtime\publish('counted', 1), Realtime\publish('counted', 2, options: ['id' => 'once'])];
        same([1, 2, 1], [$first->offset, $second->offset, $second->matched]);
        Realtime\publish('counted', 3, options: ['id' => 'once']);
        Realtime\publish('counted', 4);
        same([1, 2, 4], array_map(fn () => $client->next()['data'], [1, 2, 3]));
    });

    test('mistakes are the extension\'s exceptions', function () {
        foreach (['', str_repeat('c', 201), "a\x07", "\xff", '#user', "a\xc2\x85"] as $channel) {
            throws(InvalidChannel::class, '', fn () => Realtime\publish($channel, 1));
        }
        throws(InvalidChannel::class, 'empty', fn () => Realtime\publish([], 1));
        throws(InvalidMessage::class, 'binary: true', fn () => Realtime\publish('c', "\xff"));
        throws(InvalidMessage::class, 'stdClass', fn () => Realtime\publish('c', new stdClass()));
        throws(InvalidMessage::class, 'Inf and NaN', fn () => Realtime\publish('c', NAN));
        throws(InvalidMessage::class, 'not valid JSON', fn () => Realtime\publish('c', '{', options: ['json' => true]));
        throws(InvalidMessage::class, 'did you mean `except`', fn () => Realtime\publish('c', 1, options: ['excpt' => '1.2']));
        throws(InvalidMessage::class, '`json` must be true or false', fn () => Realtime\publish('c', 'x', options: ['json' => 1]));
        throws(InvalidMessage::class, 'exclude each other', fn () => Realtime\publish('c', 'x', options: ['json' => true, 'binary' => true]));
        throws(InvalidMessage::class, '1 to 128', fn () => Realtime\publish('c', 'x', options: ['id' => str_repeat('i', 129)]));
        throws(InvalidMessage::class, '1 to 200', fn () => Realtime\publish('c', 'x', str_repeat('e', 201)));
        same(true, Realtime\publish('c', 'x', str_repeat('e', 200), ['id' => str_repeat('i', 128)])->accepted);
        throws(ValueError::class, '3000', fn () => disconnectUser(1, 2999));
        throws(ValueError::class, '123', fn () => disconnectUser(1, 3000, str_repeat('r', 124)));
    });

    test('a message may have as many bytes as the hub takes, and not one more', function () {
        same(true, Realtime\publish('c', str_repeat('x', 262_144))->accepted);
        throws(MessageTooLarge::class, '', fn () => Realtime\publish('c', str_repeat('x', 262_145)));
        throws(MessageTooLarge::class, 'frame of the bus', fn () => Realtime\publish('c', str_repeat('x', 1 << 20)));
        same(true, Realtime\publish('c', 'x')->accepted, 'the connection is as good as before:');
    });

    test('a list of channels is sent whole, in order, with a receipt each', function () use ($hub) {
        $names = array_map(fn ($n) => "many.$n", range(1, 5000));
        $client = Client::subscribed($hub->url, 'many.1', 'many.4096', 'many.4097', 'many.5000');
        same(5000, count(Realtime\publish($names, 'x')));
        same(['many.1', 'many.4096', 'many.4097', 'many.5000'], array_map(fn () => $client->next()['channel'], range(1, 4)));
    });

    test('a wrong channel among good ones fails before anything is sent', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'good');
        throws(InvalidChannel::class, '', fn () => Realtime\publish(['good', ''], 1));
        Realtime\publish('good', 2);
        same(2, $client->next()['data']);
    });

    test('a batch of more than a frame arrives whole', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'batched');
        $bus = new BusClient([$hub->socket]);
        $bus->batch(array_map(fn ($n) => new Publication('batched', false, 'e', Publication::TEXT, str_pad("$n", 200_000, ' ')), range(1, 8)));
        same(range(1, 8), array_map(fn () => (int) $client->next()['data'], range(1, 8)));
    });

    test('what a batch\'s callback sent is dropped when it throws', function () {
        throws(DomainException::class, 'stop', fn () => Realtime\batch(function () {
            broadcastToUser(7, 'x');
            throw new DomainException('stop');
        }));
        same('done', Realtime\batch(fn () => 'done'));
        throws(Error::class, 'Realtime\batch()', fn () => Realtime\batch(fn () => Realtime\publish('c', 1)));
        same(true, Realtime\publish('c', 1)->accepted);
    });

    test('the hub\'s channels, users and counters can be asked for', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'asked');
        check(in_array(['name' => 'asked', 'subscribers' => 1], Realtime\channels(), true), 'channels() has it');
        same([], getChannelUsers('asked'));
        same(0, disconnectUser('nobody'));
        check(Realtime\stats()['connections'] >= 1, 'stats() counts connections');
        $client->id();
    });

    test('a forked child has a connection of its own', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'forked');
        Realtime\publish('forked', 'before');
        $pid = pcntl_fork();
        if ($pid === 0) {
            Realtime\publish('forked', 'child');
            posix_kill(getmypid(), SIGKILL);
        }
        pcntl_waitpid($pid, $status);
        Realtime\publish('forked', 'parent');
        same(['before', 'child', 'parent'], array_map(fn () => $client->next()['data'], [1, 2, 3]));
    });
});

test('a connection that the hub closed is made anew by the next call', function () {
    with_program(fn () => same(true, Realtime\publish('c', 1)->accepted));
    throws(Unavailable::class, 'no hub answers', fn () => Realtime\publish('c', 1));
    with_program(fn () => same(true, Realtime\publish('c', 1)->accepted));
});

test('a hub that stands still costs one deadline, then calls fail at once, then one tries again', function () {
    with_program(function (Hub $hub) {
        $bus = new BusClient([$hub->socket]);
        $publication = new Publication('c', false, 'e', Publication::TEXT, 'x');
        $bus->publish([$publication]);
        $hub->freeze();
        throws(Timeout::class, '1000 ms', fn () => $bus->publish([$publication]));
        $refused = eventually(function () use ($bus, $publication) {
            try {
                $bus->publish([$publication]);
            } catch (Unavailable $e) {
                return $e;
            } catch (Timeout) {
                // This machine took a second to come here.
                return null;
            }
        }, 'a call failed at once');
        contains('a moment ago', $refused->getMessage());
        $hub->signal(SIGCONT);
        same(1, count(eventually(function () use ($bus, $publication) {
            try {
                return $bus->publish([$publication]);
            } catch (Unavailable | Timeout) {
                return null;
            }
        }, 'the hub was asked again')));
    });
});

test('an outage is logged and counted by the functions that must not take a site down', function () {
    $log = socket_path();
    ini_set('error_log', $log);
    $before = Realtime\Laravel\Client\Runtime::current();
    $started = microtime(true);
    broadcastToUser(7, 'x');
    same([[], 0], [getChannelUsers('c'), disconnectUser(7)]);
    $lines = substr_count((string) file_get_contents($log), 'realtime: no hub answers');
    check($lines >= 1 && $lines <= 1 + (microtime(true) - $started), "$lines lines, and not one a second");
    with_program(fn () => same(3, Realtime\stats()['failed_calls']));
    check($before === Runtime::current(), 'one runtime a process');
});

test('what is not a hub gives a typed error, not a hang or a mess', function () {
    $answers = [
        'closes at once' => fn ($peer) => null,
        'a length of nothing' => fn ($peer) => fwrite($peer, pack('V', 0) . 'x'),
        'a length of everything' => fn ($peer) => fwrite($peer, pack('V', 0xffffffff)),
        'an unknown frame' => fn ($peer) => fwrite($peer, pack('VCV', 5, 0x99, 1)),
        'a receipt cut short' => fn ($peer) => fwrite($peer, pack('VCV', 5, 0x82, 1)),
        'a frame without a request' => fn ($peer) => fwrite($peer, pack('VC', 1, 0x82)),
        'HTTP' => fn ($peer) => fwrite($peer, "HTTP/1.1 400 Bad Request\r\n\r\n"),
    ];
    foreach ($answers as $what => $answer) {
        [$path, $end] = impostor(function ($listener) use ($answer) {
            while ($peer = stream_socket_accept($listener, 30)) {
                fread($peer, 8192);
                // Who still writes to a connection that is closed may not see what was said before.
                $answer($peer) ? $peers[] = $peer : fclose($peer);
            }
        });
        $e = refused([$path]);
        contains($what === 'closes at once' ? 'closed the connection' : 'bus protocol', $e->getMessage());
        $end();
    }
});

test('over TCP both sides prove that they know the secret, and frames are sealed', function () {
    $secret = bin2hex(random_bytes(32));
    $path = socket_path();
    $address = 'tcp://127.0.0.1:' . Tests\free_port();
    $hub = new Hub(['SECRET' => $secret], "$path,$address");
    $client = Client::subscribed($hub->url, 'news');
    $publication = fn (string $body) => new Publication('news', false, 'e', Publication::TEXT, $body);
    $bus = new BusClient([$address], $secret);
    same(3, count($bus->publish([$publication('a'), $publication('b'), $publication('c')])));
    $bus->publish([$publication(str_repeat('d', 200_000))]);
    same(['a', 'b', 'c', str_repeat('d', 200_000)], array_map(fn () => $client->next()['data'], range(1, 4)));
    check($bus->stats()['connections'] >= 1, 'queries work as well');
    throws(InvalidChannel::class, '', fn () => $bus->publish([new Publication('#x', false, 'e', Publication::TEXT, 'x')]));
    $e = throws(Realtime\Exception\Unauthorized::class, 'secret', fn () => (new BusClient([$address], str_repeat('x', 64)))->publish([$publication('x')]));
    check(!$e->isRetryable(), 'a wrong secret stays wrong');
    throws(Realtime\Exception\ConfigError::class, '32 bytes', fn () => (new BusClient([$address], 'short'))->publish([$publication('x')]));
    // A path that is not served is followed by one that is.
    same(1, count((new BusClient(BusClient::addresses("/nowhere.sock, $address"), $secret))->publish([$publication('e')])));
    $hub->stop();
    $again = new Hub(['SECRET' => $secret], "$path,$address");
    same(1, count($bus->publish([$publication('f')])));
    $again->stop();
});

test('over TLS the hub is who its certificate says', function () {
    $secret = bin2hex(random_bytes(32));
    $certified = function () {
        $place = getenv('TEST_DIRECTORY') . '/' . bin2hex(random_bytes(4));
        exec("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=app -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout $place.key -out $place.crt 2>&1", $said, $code);
        same(0, $code, implode("\n", $said));

        return $place;
    };
    [$own, $other] = [$certified(), $certified()];
    $path = socket_path();
    $port = Tests\free_port();
    $start = fn () => new Hub(['SECRET' => $secret, 'LIMITS__PUBLICATION_BYTES' => '1000000', 'LIMITS__OUTBOX_BYTES' => '8000000', 'SOCKET_CERT' => "$own.crt", 'SOCKET_KEY' => "$own.key"], "$path,tls://127.0.0.1:$port");
    $hub = $start();
    $client = Client::subscribed($hub->url, 'news');
    $publication = fn (string $body) => new Publication('news', false, 'e', Publication::TEXT, $body);
    $bus = new BusClient(["tls://localhost:$port"], $secret, "$own.crt");
    same(3, count($bus->publish([$publication('a'), $publication('b'), $publication('c')])));
    same(1, count($bus->publish([$publication(str_repeat('d', 900_000))])));
    same(['a', 'b', 'c', str_repeat('d', 900_000)], array_map(fn () => $client->next()['data'], range(1, 4)));
    same(0, $bus->stats()['bus_errors']);
    $refused = fn (string $address, ?string $ca) => throws(Unavailable::class, '', fn () => (new BusClient([$address], $secret, $ca))->publish([$publication('x')]))->getMessage();
    contains('certificate verify failed', $refused("tls://localhost:$port", "$other.crt"));
    contains('certificate verify failed', $refused("tls://localhost:$port", null));
    contains('did not match', $refused("tls://127.0.0.1:$port", "$own.crt"));
    throws(Realtime\Exception\ConfigError::class, '/nowhere.pem', fn () => (new BusClient(["tls://localhost:$port"], $secret, '/nowhere.pem'))->publish([$publication('x')]));
    throws(Realtime\Exception\Unauthorized::class, 'secret', fn () => (new BusClient(["tls://localhost:$port"], str_repeat('x', 64), "$own.crt"))->publish([$publication('x')]));
    contains('is its address tls://?', $refused("tcp://localhost:$port", null));
    $plain = Tests\free_port();
    $without = new Hub(['SECRET' => $secret], socket_path() . ",tcp://127.0.0.1:$plain");
    contains('no TLS with', $refused("tls://localhost:$plain", "$own.crt"));
    $without->stop();
    // A hub that stands still costs a deadline, with much or little to say.
    foreach ([10, 900_000] as $bytes) {
        $silent = new BusClient(["tls://localhost:$port"], $secret, "$own.crt");
        $silent->stats();
        $hub->freeze();
        throws(Timeout::class, '', fn () => $silent->publish([$publication(str_repeat('x', $bytes))]));
        $hub->signal(SIGCONT);
    }
    same(1, count($bus->publish([$publication('e')])));
    // A child gives up its copy of the connection, and makes one of its own.
    if (($child = pcntl_fork()) === 0) {
        $bus->publish([$publication('child')]);
        posix_kill(getmypid(), SIGKILL);
    }
    pcntl_waitpid($child, $status);
    same(1, count($bus->publish([$publication('parent')])));
    while (($data = $client->next()['data']) !== 'child');
    same('parent', $client->next()['data']);
    $hub->stop();
    $again = $start();
    same(1, count($bus->publish([$publication('f')])));
    $again->stop();
});

test('over TCP a frame that was changed on the way ends the connection', function () {
    $secret = str_repeat('s', 32);
    $listener = stream_socket_server('tcp://127.0.0.1:0');
    $pid = pcntl_fork();
    if ($pid === 0) {
        while ($peer = stream_socket_accept($listener, 30)) {
            $knock = stream_get_contents($peer, 4 + 1 + 4 + 32);
            $both = substr($knock, -32) . ($nonce = random_bytes(32));
            fwrite($peer, pack('VC', 65, 0x85) . $nonce . hash_hmac('sha256', "realtime bus 1 hub    proof$both", $secret, true));
            stream_get_contents($peer, 4 + 1 + 32);
            // A receipt that is right in all but its tag.
            fwrite($peer, pack('VCVPPV', 25, 0x82, 1, 1, 1, 1) . str_repeat("\0", 16));
            $peers[] = $peer;
        }
        posix_kill(getmypid(), SIGKILL);
    }
    contains('changed on the way', refused(['tcp://' . stream_socket_get_name($listener, false)], $secret)->getMessage());
    posix_kill($pid, SIGKILL);
    pcntl_waitpid($pid, $status);
});

test('a failure of the whole connection is thrown with the hub\'s words', function () {
    [$path, $end] = impostor(function ($listener) {
        while ($peer = stream_socket_accept($listener, 30)) {
            fread($peer, 8192);
            $message = 'no version in common';
            fwrite($peer, pack('VCVCv', 8 + strlen($message), 0x83, 0, 8, strlen($message)) . $message);
            $peers[] = $peer;
        }
    });
    contains('no version in common', refused([$path])->getMessage());
    $end();
});

test('the usual sockets follow XDG_RUNTIME_DIR', function () {
    putenv('XDG_RUNTIME_DIR=' . ($runtime = getenv('TEST_DIRECTORY') . '/runtime'));
    contains("$runtime/realtime/realtime.sock", implode(' ', BusClient::usualSockets()));
    putenv('XDG_RUNTIME_DIR');
});
