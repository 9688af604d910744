<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use App\Events\OrderShipped;
use Illuminate\Broadcasting\BroadcastException;
use Illuminate\Contracts\Broadcasting\Factory;
use Realtime\Exception\ConfigError;
use Realtime\Exception\InvalidMessage;
use Realtime\Exception\MessageTooLarge;
use Realtime\Exception\Unauthorized;
use Realtime\Exception\Unavailable;
use Realtime\Laravel\Client\HttpClient;
use Realtime\Laravel\Client\Publication;
use Tests\Client;
use Tests\Hub;

use function Tests\app_with;
use function Tests\check;
use function Tests\free_port;
use function Tests\same;
use function Tests\test;
use function Tests\throws;
use function Tests\with_program;
use function Tests\work;

function client(Hub $hub, string $secret = Tests\SECRET, string $id = '3'): HttpClient
{
    return new HttpClient("http://{$hub->address()}", $id, Tests\KEY, $secret);
}

function json(string $channel, string $json, string $event = 'e', array $except = []): Publication
{
    return new Publication($channel, false, $event, Publication::JSON, $json, $except);
}

with_program(function (Hub $hub) {
    test('the driver publishes over the HTTP API where its address is set', function () use ($hub) {
        $app = app_with(['realtime.url' => "http://{$hub->address()}", 'realtime.socket' => '/nowhere']);
        $client = Client::subscribed($hub->url, 'news');
        $app->make(Factory::class)->connection()->broadcast(['news'], 'shipped', ['who' => 'Zoë/x', 'n' => 1.0]);
        $message = $client->next();
        same(['shipped', ['who' => 'Zoë/x', 'n' => 1.0]], [$message['event'], $message['data']]);
        Realtime\publish('news', 'text');
        same('text', $client->next()['data'], 'a string stays a string:');
        event(new OrderShipped(1));
        work($app);
        same(0, (int) $app['db']->table('jobs')->count());
    });

    test('250 channels go out in requests of a hundred', function () use ($hub) {
        $names = array_map(fn ($n) => "device.$n", range(1, 250));
        $client = Client::subscribed($hub->url, 'device.1', 'device.101', 'device.250');
        same(250, count(client($hub)->publish(array_map(fn ($name) => json($name, '{"n":1}'), $names))));
        same(['device.1', 'device.101', 'device.250'], array_map(fn () => $client->next()['channel'], [1, 2, 3]));
    });

    test('what differs in more than the channel goes out by itself, in order', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'a', 'b');
        client($hub)->publish([json('a', '1'), json('b', '1'), json('a', '2'), json('a', '3', 'other'), json('a', '4', except: [$client->id()]), json('a', '5')]);
        $heard = array_map(function () use ($client) {
            $message = $client->next();

            return [$message['channel'], $message['event'], $message['data']];
        }, range(1, 5));
        same([['a', 'e', 1], ['b', 'e', 1], ['a', 'e', 2], ['a', 'other', 3], ['a', 'e', 5]], $heard);
    });

    test('a batch of 25 arrives whole', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'batched');
        client($hub)->batch(array_map(fn ($n) => json('batched', "$n"), range(1, 25)));
        same(range(1, 25), array_map(fn () => $client->next()['data'], range(1, 25)));
    });

    test('channels, counters and closing a user\'s connections', function () use ($hub) {
        $client = Client::subscribed($hub->url, 'asked');
        check(in_array('asked', array_column(client($hub)->channels(), 'name'), true), 'channels() has it');
        check(client($hub)->stats()['connections'] >= 1, 'stats() counts connections');
        same(-1, client($hub)->disconnectUser('nobody', 4009, ''));
        $client->id();
    });

    test('refusals are typed', function () use ($hub) {
        throws(Unauthorized::class, '401', fn () => client($hub, 'wrong')->publish([json('a', '1')]));
        throws(ConfigError::class, '404', fn () => client($hub, id: '4')->publish([json('a', '1')]));
        throws(MessageTooLarge::class, '413', fn () => client($hub)->publish([json('a', '"' . str_repeat('x', 300_000) . '"')]));
        throws(InvalidMessage::class, '400', fn () => client($hub)->publish([json('a b', '1')]));
        throws(InvalidMessage::class, 'no binary', fn () => client($hub)->publish([new Publication('a', false, 'e', Publication::BINARY, 'x')]));
        throws(InvalidMessage::class, 'one connection', fn () => client($hub)->publish([json('a', '1', except: ['1.2', '1.3'])]));
        throws(ConfigError::class, 'secret', fn () => client($hub, ''));
        $app = app_with(['realtime.url' => "http://{$hub->address()}", 'realtime.app' => ['id' => '3', 'key' => Tests\KEY, 'secret' => 'wrong']]);
        throws(BroadcastException::class, '401', fn () => $app->make(Factory::class)->connection()->broadcast(['a'], 'e', []));
    });
});

test('nobody there is Unavailable, which may succeed later', function () {
    $e = throws(Unavailable::class, 'no hub answers', fn () => (new HttpClient('http://127.0.0.1:' . free_port(), '3', 'k', 's'))->publish([json('a', '1')]));
    check($e->isRetryable(), 'it may be tried again');
});

test('what answers and is no hub is an error', function () {
    $listener = stream_socket_server('tcp://127.0.0.1:0');
    $address = stream_socket_get_name($listener, false);
    $pid = pcntl_fork();
    if ($pid === 0) {
        $peer = stream_socket_accept($listener, 30);
        fread($peer, 65536);
        fwrite($peer, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
        fclose($peer);
        posix_kill(getmypid(), SIGKILL);
    }
    throws(Unavailable::class, 'not JSON', fn () => (new HttpClient("http://$address", '3', 'k', 's'))->publish([json('a', '1')]));
    pcntl_waitpid($pid, $status);
});
