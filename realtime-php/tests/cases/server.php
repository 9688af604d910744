<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\{Connection, Server};
use Realtime\Exception\{InvalidChannel, InvalidMessage, Unavailable};
use Tests\{Client, Process};

use function Tests\{check, contains, eventually, php, same, test, throws, with_hub};

/** Polls until the condition gives something true, and returns that. */
function polling(Server $server, callable $condition, string $what): mixed
{
    return eventually(function () use ($server, $condition) {
        $server->poll(5);
        return $condition();
    }, $what);
}

with_hub(function (Realtime\Hub|Tests\HubProcess $hub) {
    test('connect, message, unsubscribe and disconnect reach the handlers, and what they answer the client', function () use ($hub) {
        $seen = new ArrayObject();
        $last = fn () => $seen[count($seen) - 1];
        $server = new Server();
        same($server, $server->on('connect', function (Connection $c) use ($seen) {
            $seen[] = ['connect', $c->path, $c->query, $c->userId];
            $c->data = ['n' => 0];
        }));
        $server->on('message', function (Connection $c, string $event, mixed $data) use ($seen) {
            $c->data['n']++;
            $seen[] = ['message', $event, $data];
            return match ($event) {
                'add' => array_sum($data) + $c->data['n'],
                'refuse' => false,
                'throw' => throw new LogicException('a bug'),
                'tell' => $c->send(['told' => $data], 'news'),
                'bytes' => $c->send("\x00\xff", options: ['binary' => true]),
                default => null,
            };
        });
        $server->on('unsubscribe', function (Connection $c, string $channel) use ($seen) {
            $seen[] = ['unsubscribe', $channel];
        });
        $server->on('disconnect', function (Connection $c, string $reason) use ($seen) {
            $seen[] = ['disconnect', $reason, $c->data];
        });
        same(0, $server->poll());

        $client = new Client($hub->url, '/ws?room=a%20b&x=1+2');
        polling($server, fn () => count($seen) > 0, 'the connection came');
        $client->id();
        same([['connect', '/ws', ['room' => 'a b', 'x' => '1 2'], null]], $seen->getArrayCopy());
        $ask = function (string $event, mixed $data, ?string $id = null) use ($client, $server, $seen) {
            $before = count($seen);
            $client->send(['action' => 'message', 'event' => $event, 'data' => $data] + ($id === null ? [] : ['id' => $id]));
            polling($server, fn () => count($seen) > $before, "`$event` came");
        };
        $ask('add', [1, 2], 'q1');
        same(['type' => 'answer', 'id' => 'q1', 'data' => 4], $client->next('answer'));
        $ask('refuse', null, 'q2');
        same(['refused', 'q2'], [($error = $client->next('error'))['code'], $error['id']]);
        $ask('throw', null, 'q3');
        same(['refused', 'q3'], [($error = $client->next('error'))['code'], $error['id']]);
        $ask('tell', ['a' => 2, 'z' => 1]);
        same(['news', ['told' => ['a' => 2, 'z' => 1]]], [($message = $client->next())['event'], $message['data']]);
        $client->send(['action' => 'subscribe', 'channel' => 'c']);
        $client->next('subscribed');
        $client->send(['action' => 'unsubscribe', 'channel' => 'c']);
        polling($server, fn () => $last() === ['unsubscribe', 'c'], 'the unsubscription came');
        $client->drop();
        polling($server, fn () => $last()[0] === 'disconnect', 'the end came');
        same(['disconnect', 'peer', ['n' => 4]], $last());
        throws(Error::class, 'before the server runs', fn () => $server->on('connect', fn () => null));
    });

    test('a connection joins, leaves and is closed; another one is reached by its id', function () use ($hub) {
        $connections = new ArrayObject();
        $server = (new Server())->on('connect', function (Connection $c) use ($connections) {
            $connections[] = $c;
        });
        $server->poll();
        [$one, $two] = [new Client($hub->url), new Client($hub->url)];
        polling($server, fn () => count($connections) === 2, 'both came');
        same([true, true], [$connections[0]->join('room'), $connections[0]->join('room')]);
        [$first, $second] = $connections[0]->id === $one->id() ? [$one, $two] : [$two, $one];
        $second->id();
        same('room', $first->next('subscribed')['channel']);
        broadcast('room', 'to the room');
        same('to the room', $first->next()['data']);
        same([true, false], [$connections[0]->leave('room'), $connections[0]->leave('room')]);
        $server->send($connections[1]->id, 'to one');
        same('to one', $second->next()['data']);
        $server->send('nonsense', 'to nobody');
        throws(InvalidChannel::class, 'internal', fn () => $connections[0]->join('#x'));
        throws(InvalidMessage::class, 'UTF-8', fn () => $connections[0]->send("\xff"));
        throws(InvalidMessage::class, 'unknown option', fn () => $connections[0]->send('x', options: ['id' => 'k']));
        throws(ValueError::class, 'Argument #1 ($code)', fn () => $connections[0]->close(1001));
        $connections[0]->close(4321, 'enough');
        same(4321, $first->closeCode());
        polling($server, fn () => $connections[0]->join('room') === false, 'it is gone');
    });

    test('connections and subscriptions are refused by false and by an exception', function () use ($hub) {
        $asked = new ArrayObject();
        $let = new ArrayObject();
        $server = (new Server())
            ->on('connect', function (Connection $c) use ($let) {
                $let[] = $c;
                return match ($c->query['who'] ?? '') {
                    'nobody' => false,
                    'broken' => throw new RuntimeException('no database'),
                    default => null,
                };
            })
            ->on('subscribe', function (Connection $c, string $channel) use ($asked) {
                $asked[] = $channel;
                return $channel !== 'secret';
            });
        $server->poll();
        foreach (['nobody', 'broken'] as $who) {
            $client = new Client($hub->url, "/ws?who=$who");
            $before = count($let);
            polling($server, fn () => count($let) > $before, 'it was asked');
            same(4003, $client->closeCode());
        }
        $client = new Client($hub->url, '/ws?who=me');
        $client->send(['action' => 'subscribe', 'channel' => 'open', 'id' => 1]);
        $client->send(['action' => 'subscribe', 'channel' => 'secret', 'id' => 2]);
        polling($server, fn () => count($asked) === 2, 'both were asked');
        same(1, $client->next('subscribed')['id']);
        same(['unauthorized', 2], [($error = $client->next('error'))['code'], $error['id']]);
        unset($server);
        // What a program has decided is refused without one.
        same(4003, (new Client($hub->url))->closeCode());
    });

    test('stream() is readable when there is something to handle', function () use ($hub) {
        $seen = 0;
        $server = (new Server())->on('connect', function () use (&$seen) {
            $seen++;
        });
        $stream = $server->stream();
        same('stream', get_resource_type($stream));
        $read = [$stream];
        $none = null;
        same(0, stream_select($read, $none, $none, 0));
        $clients = [new Client($hub->url), new Client($hub->url)];
        eventually(function () use ($stream, $server, &$seen) {
            $read = [$stream];
            $none = null;
            if (stream_select($read, $none, $none, 5)) {
                $server->poll();
            }
            return $seen === 2;
        }, 'both were seen');
        foreach ($clients as $client) {
            $client->id();
        }
    });

    test('stream() is readable when an event came with the answer to a call between polls, and no longer once it is handled', function () use ($hub) {
        [$connection, $seen] = [null, []];
        $server = (new Server())->on('connect', function (Connection $new) use (&$connection) {
            $connection = $new;
        })->on('message', function (Connection $from, string $event, mixed $data) use (&$seen) {
            $seen[] = $data;
        });
        $stream = $server->stream();
        $readable = function (int $seconds) use ($stream) {
            [$read, $none] = [[$stream], null];
            return stream_select($read, $none, $none, $seconds);
        };
        $client = new Client($hub->url);
        polling($server, function () use (&$connection) {
            return $connection;
        }, 'it has connected');
        foreach (['join', 'leave'] as $call) {
            while ($server->poll() > 0);
            $client->send(['action' => 'message', 'event' => 'e', 'data' => $call]);
            same(1, $readable((int) Tests\DEADLINE_S));
            // The event comes before the answer, which is read from the same socket.
            same(true, $connection->$call('room'));
            same(1, $readable((int) Tests\DEADLINE_S), "after $call()");
            polling($server, function () use (&$seen, $call) {
                return end($seen) === $call;
            }, 'it is handled');
            same(0, $readable(0));
        }
        same(['join', 'leave'], $seen);
    });

    test('a handler cannot poll its own server, and mistakes are named', function () use ($hub) {
        $caught = new ArrayObject();
        $server = new Server();
        // Not the server itself: it would keep itself alive.
        $polls = WeakReference::create($server);
        $server->on('connect', function () use ($polls, $caught) {
            try {
                $polls->get()->poll();
            } catch (Error $e) {
                $caught[] = $e->getMessage();
            }
        });
        $server->poll();
        $client = new Client($hub->url);
        polling($server, fn () => count($caught) > 0, 'it was called');
        contains('cannot poll', $caught[0]);
        throws(ValueError::class, 'must be one of connect', fn () => $server->on('conect', fn () => null));
        throws(ValueError::class, 'negative', fn () => $server->poll(-1));
        throws(TypeError::class, 'a valid callback', fn () => (fn ($s) => $s->on('connect', 'no_such_function'))($server));
        unset($client);
    });

    test('presence counts, lists and finds the users of a channel', function () use ($hub) {
        $presence = Realtime\presence('lobby');
        same([0, [], false, 'lobby'], [count($presence), $presence->users(), $presence->has(7), $presence->channel]);
        $clients = [];
        $seen = new ArrayObject();
        $note = function () use ($seen) {
            $seen[] = 1;
        };
        // What the servers of the tests before decided has to be decided by somebody.
        $server = (new Server())->on('connect', $note)->on('subscribe', $note);
        $server->poll();
        foreach ([7, 7, 'ada'] as $at => $user) {
            $clients[] = $client = new Client($hub->url);
            polling($server, fn () => count($seen) === 2 * $at + 1, 'it was let in');
            check($hub->setUser($client->id(), $user, ['z' => 1, 'a' => $user]), 'known');
            $client->send(['action' => 'subscribe', 'channel' => 'lobby']);
            polling($server, fn () => count($seen) === 2 * $at + 2, 'it may subscribe');
            $client->next('subscribed');
        }
        same([2, true, true, false], [count($presence), $presence->has(7), $presence->has('ada'), $presence->has('eve')]);
        same([['id' => '7', 'info' => ['z' => 1, 'a' => 7], 'connections' => 2], ['id' => 'ada', 'info' => ['z' => 1, 'a' => 'ada'], 'connections' => 1]], $presence->users());
        throws(InvalidChannel::class, 'internal', fn () => Realtime\presence('#x'));
    });

    test('a worker reads events, each once, and again what it did not finish', function () use ($hub) {
        $kinds = $numbers = [];
        foreach (Realtime\events(0) as $number => $event) {
            check($event['number'] === $number && $event['attempt'] >= 1 && $event['dropped'] === 0, 'numbered');
            $kinds[$event['kind']] = $numbers[$number] = true;
        }
        check(isset($kinds['joined'], $kinds['disconnect']), 'what the other tests did was queued');
        // A connection of the tests before may have ended only now.
        same([], array_intersect_key(iterator_to_array(Realtime\events(0)), $numbers), 'everything is acknowledged');
        throws(ValueError::class, 'negative', fn () => Realtime\events(-1));

    });

    test('a worker acknowledges its last event and takes no other', function () use ($hub) {
        $seen = new ArrayObject();
        $server = (new Server())->on('connect', function () use ($seen) {
            $seen[] = 1;
        });
        $server->poll();
        $mine = [];
        foreach ([1, 2] as $count) {
            $client = new Client($hub->url);
            polling($server, fn () => count($seen) === $count, 'it was let in');
            $mine[$client->id()] = true;
            $client->drop();
        }
        $events = Realtime\events(0);
        $events->done();
        while ($mine !== []) {
            polling($server, function () use ($events) {
                $events->next();
                return $events->valid();
            }, 'an event came');
            ['attempt' => $attempt, 'connection' => $connection] = $events->current() + ['connection' => null];
            same(1, $attempt, 'nobody was given it in between:');
            unset($mine[$connection]);
            $events->done();
            same([false, null], [$events->valid(), $events->current()]);
            $events->done();
        }
    });
}, [
    'channels' => [['match' => 'lobby', 'presence' => true]],
    'presence_grace_ms' => 0,
    'hooks' => ['events' => ['joined', 'disconnect'], 'timeout_ms' => 20000],
]);

with_hub(function () {
    test('a hub that queues no events says which setting names them', function () {
        throws(Realtime\Exception\ConfigError::class, 'hooks.events', fn () => iterator_to_array(Realtime\events(0)));
    });
});

if (getenv('TEST_MODE') !== 'bus') {
    test('without a hub there is nothing to serve', function () {
        throws(Unavailable::class, 'no hub', fn () => (new Server())->poll());
    });

    test('stream() is readable without a hub, and the same stream shows what the next one has', function () {
        $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1]);
        $seen = 0;
        $server = (new Server())->on('connect', function () use (&$seen) {
            $seen++;
        });
        $stream = $server->stream();
        $readable = function (int $seconds) use ($stream) {
            [$read, $none] = [[$stream], null];
            return stream_select($read, $none, $none, $seconds);
        };
        same(0, $readable(0));
        $hub->stop(2000);
        for ($i = 0; $i < 2; $i++) {
            same(1, $readable((int) Tests\DEADLINE_S));
            throws(Unavailable::class, '', fn () => $server->poll());
        }
        $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1]);
        same([0, 0], [$server->poll(), $readable(0)]);
        $client = new Client($hub->url);
        eventually(function () use ($readable, $server, &$seen) {
            $readable(5) && $server->poll();
            return $seen === 1;
        }, 'it was seen');
        $client->id();
        $hub->stop(2000);
    });

    test('run() handles until SIGTERM, and drains', function () {
        $process = php(<<<'PHP'
            $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1]);
            $server = (new Realtime\Server())->on('message', fn (Realtime\Connection $c, string $event, mixed $data) => strtoupper($data));
            // From here on messages are kept for it.
            $server->poll();
            echo "ready {$hub->url}\n";
            exit($server->run());
            PHP);
        $url = $process->expect('~^ready (\S+)$~m')[1];
        $client = new Client($url);
        $client->send(['action' => 'message', 'event' => 'e', 'data' => 'quiet', 'id' => 1]);
        same('QUIET', $client->next('answer')['data']);
        $process->signal(SIGTERM);
        same(1001, $client->closeCode());
        same(0, $process->wait());
    });

    test('what a handler starts can be told to end, and run() ends in good order when TERM comes while it runs', function () {
        $process = php(<<<'PHP'
            $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1]);
            $server = (new Realtime\Server())->on('message', function () {
                $started = proc_open(['sleep', '600'], [], $pipes);
                proc_terminate($started, SIGTERM);
                // Until it has ended; it is not to live on with this test.
                for ($end = microtime(true) + 20; ($status = proc_get_status($started))['running'] && microtime(true) < $end; usleep(1000));
                $status['running'] && proc_terminate($started, SIGKILL);
                $child = pcntl_fork();
                if ($child === 0) {
                    posix_kill(getmypid(), SIGTERM);
                    usleep(1000);
                    posix_kill(getmypid(), SIGKILL);
                }
                pcntl_waitpid($child, $forked);
                posix_kill(getmypid(), SIGTERM);
                return [$status['signaled'] ? $status['termsig'] : 0, pcntl_wtermsig($forked)];
            });
            $server->poll();
            echo "ready {$hub->url}\n";
            $ended = $server->run();
            // The script's own again.
            posix_kill(getmypid(), SIGTERM);
            usleep(1000);
            exit(1 + $ended);
            PHP);
        $client = new Client($process->expect('~^ready (\S+)$~m')[1]);
        $client->send(['action' => 'message', 'event' => 'e', 'id' => 1]);
        same([SIGTERM, SIGTERM], $client->next('answer')['data']);
        same(1001, $client->closeCode());
        same(128 + SIGTERM, $process->wait());
    });
}
