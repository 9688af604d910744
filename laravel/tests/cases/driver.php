<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use App\Events\OrderShipped;
use App\Notifications\Hello;
use App\User;
use Illuminate\Broadcasting\BroadcastException;
use Illuminate\Broadcasting\Channel;
use Illuminate\Broadcasting\EncryptedPrivateChannel;
use Illuminate\Broadcasting\PresenceChannel;
use Illuminate\Broadcasting\PrivateChannel;
use Illuminate\Contracts\Broadcasting\Factory;
use Realtime\Laravel\Broadcasting\RealtimeBroadcaster;
use Realtime\Laravel\Broadcasting\Signer;
use Tests\Client;
use Tests\Hub;

use function Tests\app_with;
use function Tests\artisan;
use function Tests\check;
use function Tests\contains;
use function Tests\request;
use function Tests\same;
use function Tests\test;
use function Tests\throws;
use function Tests\with_program;
use function Tests\work;

/** A client on a channel that needs the application's signature. */
function joined(Hub $hub, string ...$channels): Client
{
    $client = new Client($hub->url);
    $id = $client->id();
    foreach ($channels as $channel) {
        $auth = preg_match('/^(private|presence)-/', $channel) ? (new Signer(Tests\KEY, Tests\SECRET))->channel($id, $channel, '{"user_id":"7"}') : [];
        $client->send(['action' => 'subscribe', 'channel' => $channel] + $auth);
        $client->next('subscribed');
    }

    return $client;
}

/** The parts of a message that a client acts on. */
function heard(Client $client): array
{
    $message = $client->next();

    return [$message['channel'], $message['event'], $message['data']];
}

test('the driver is found by the package\'s own provider', function () {
    check(app_with()->make(Factory::class)->connection() instanceof RealtimeBroadcaster, 'connection() is the package\'s');
});

with_program(function (Hub $hub) {
    $app = app_with();
    $driver = $app->make(Factory::class)->connection();

    test('a message reaches every kind of channel by its full name, as JSON', function () use ($hub, $driver) {
        $client = joined($hub, 'news', 'private-orders.1', 'presence-room.1');
        $driver->broadcast([new Channel('news'), new PrivateChannel('orders.1'), new PresenceChannel('room.1'), 'news'], 'shipped', ['id' => 7, 'price' => 1.0, 'who' => 'Zoë/x']);
        $data = ['id' => 7, 'price' => 1.0, 'who' => 'Zoë/x'];
        foreach (['news', 'private-orders.1', 'presence-room.1'] as $channel) {
            same([$channel, 'shipped', $data], heard($client));
        }
        $driver->broadcast(['news'], 'next', []);
        same('next', heard($client)[1], 'a channel that is named twice gets it once;');
    });

    test('an event goes through the queue and says what Laravel makes of it', function () use ($hub, $app) {
        $client = joined($hub, 'private-orders.1');
        event(new OrderShipped(42));
        same(1, $app['db']->table('jobs')->count());
        work($app);
        same(['private-orders.1', 'shipped', ['order' => 42]], heard($client));
    });

    test('toOthers() spares the socket of the request, and nobody else', function () use ($hub, $app) {
        $mine = joined($hub, 'private-orders.1');
        $other = joined($hub, 'private-orders.1');
        same(200, request($app, 'GET', '/helper', [], ['X-Socket-ID' => $mine->id()])->getStatusCode());
        work($app);
        same(['order' => 1], heard($other)[2]);
        $app['events']->dispatch(new OrderShipped(2));
        work($app);
        same(['order' => 2], heard($mine)[2]);
    });

    test('a socket id that a client made up excludes nobody and breaks nothing', function () use ($hub, $app) {
        $client = joined($hub, 'private-orders.1');
        foreach (['nonsense', '1.2.3', '99999999999999999999.1', ''] as $socket) {
            $app->make(Factory::class)->connection()->broadcast(['private-orders.1'], 'e', ['n' => $socket, 'socket' => $socket]);
            same(['n' => $socket], heard($client)[2]);
        }
    });

    test('an event on 250 channels goes out in parts', function () use ($hub, $driver) {
        $names = array_map(fn ($n) => "device.$n", range(1, 250));
        $client = Client::subscribed($hub->url, 'device.1', 'device.100', 'device.101', 'device.250');
        $driver->broadcast($names, 'tick', ['n' => 1]);
        foreach (['device.1', 'device.100', 'device.101', 'device.250'] as $channel) {
            same($channel, heard($client)[0]);
        }
    });

    test('an empty list of channels sends nothing', function () use ($driver) {
        same(null, $driver->broadcast([], 'e', ['n' => 1]));
    });

    test('an encrypted channel carries what only its subscribers can read', function () use ($hub, $app, $driver) {
        $client = joined($hub, 'private-encrypted-orders.1');
        $driver->broadcast([new EncryptedPrivateChannel('orders.1')], 'secret', ['pin' => 1234]);
        ['nonce' => $nonce, 'ciphertext' => $text] = $client->next()['data'];
        $answer = json_decode(request($app, 'POST', '/broadcasting/auth', ['channel_name' => 'private-encrypted-orders.1', 'socket_id' => '1.2'], ['X-User' => '1'])->getContent(), true);
        same('{"pin":1234}', sodium_crypto_secretbox_open(base64_decode($text), base64_decode($nonce), base64_decode($answer['shared_secret'])));
    });

    test('a notification arrives on the user\'s channel', function () use ($hub, $app) {
        $client = joined($hub, 'private-App.User.7');
        User::named('7')->notifyNow(new Hello());
        work($app);
        [$channel, $event, $data] = heard($client);
        same(['private-App.User.7', 'Illuminate\Notifications\Events\BroadcastNotificationCreated'], [$channel, $event]);
        same('hello', $data['text']);
    });

    test('the helper, in whole: broadcast(new Event)->toOthers() is Laravel\'s', function () use ($hub, $app) {
        $client = joined($hub, 'private-orders.1');
        $pending = broadcast(new OrderShipped(5));
        check($pending instanceof Illuminate\Broadcasting\PendingBroadcast, 'the helper gives Laravel\'s PendingBroadcast');
        $pending->toOthers();
        unset($pending);
        work($app);
        same(['order' => 5], heard($client)[2]);
    });

    if (extension_loaded('realtime')) {
        test('broadcast(\'channel\', $message) publishes, and with one argument says what is missing', function () use ($hub) {
            $client = joined($hub, 'news', 'private-a');
            broadcast('news', ['n' => 1], as: 'tick');
            same(['news', 'tick', ['n' => 1]], heard($client));
            broadcast(new PrivateChannel('a'), 'text');
            same(['private-a', 'message', 'text'], heard($client));
            throws(InvalidArgumentException::class, "write broadcast('news', \$message)", fn () => broadcast('news'));
        });
    } else {
        test('broadcast(\'channel\', $message) fails and names what to call instead', function () {
            throws(InvalidArgumentException::class, 'Realtime\publish(\'news\', $message)', fn () => broadcast('news', ['n' => 1]));
            throws(InvalidArgumentException::class, 'Realtime\publish(new Illuminate\Broadcasting\PrivateChannel, $message)', fn () => broadcast(new PrivateChannel('a'), 1));
        });
    }

    test('the functions work beside the driver', function () use ($hub) {
        $client = joined($hub, 'functions');
        $receipt = Realtime\publish('functions', ['n' => 1], 'tick');
        same(['functions', 'tick', ['n' => 1]], heard($client));
        check($receipt->accepted && strlen($receipt->epoch) === 16, 'a receipt with its epoch');
        same([1, 1], [$receipt->offset >= 1 ? 1 : 0, $receipt->matched]);
        same(2, count(Realtime\publish(['functions', 'other'], 'x')));
    });

    test('what cannot be encoded is a BroadcastException that names event and reason', function () use ($driver) {
        $e = throws(BroadcastException::class, 'Malformed UTF-8', fn () => $driver->broadcast(['news'], 'shipped', ['name' => "\xff"]));
        contains('event shipped', $e->getMessage());
        check($e->getPrevious() instanceof Realtime\Exception\InvalidMessage, 'its cause is InvalidMessage');
    });

    test('a message that is too large is a BroadcastException', function () use ($driver) {
        $e = throws(BroadcastException::class, 'Realtime: ', fn () => $driver->broadcast(['news'], 'e', ['x' => str_repeat('x', 300_000)]));
        check($e->getPrevious() instanceof Realtime\Exception\MessageTooLarge, 'its cause is MessageTooLarge, not ' . get_debug_type($e->getPrevious()));
    });

    test('a wrong channel name is a BroadcastException', function () use ($driver) {
        foreach ([str_repeat('c', 201), "a\nb", '#server-to-user-1', ''] as $name) {
            throws(BroadcastException::class, 'Realtime: ', fn () => $driver->broadcast([$name], 'e', []));
        }
        same(null, $driver->broadcast([str_repeat('c', 200)], 'e', []));
    });
});

test('without a hub an event in a queue fails, and is tried again', function () {
    $app = app_with();
    $driver = $app->make(Factory::class)->connection();
    $e = throws(BroadcastException::class, 'Realtime: no hub', fn () => $driver->broadcast(['news'], 'e', []));
    check($e->getPrevious()->isRetryable(), 'it may succeed later');
    event(new OrderShipped(1));
    artisan($app, 'queue:work', ['--once' => true, '--tries' => 2, '--sleep' => 0, '--backoff' => 0]);
    same([1, 1], [(int) $app['db']->table('jobs')->count(), (int) $app['db']->table('jobs')->value('attempts')]);
    with_program(function (Hub $hub) use ($app) {
        $client = joined($hub, 'private-orders.1');
        work($app, ['--tries' => 2]);
        same(['order' => 1], heard($client)[2]);
    });
});

with_program(function (Hub $hub) {
    test('a retried job repeats nothing where it had succeeded', function () use ($hub) {
        $app = app_with();
        $client = joined($hub, 'private-orders.1', 'after');
        event(new OrderShipped(9));
        // The first try publishes and is then killed: its row stays, as after a lost worker.
        $job = $app['db']->table('jobs')->first();
        work($app);
        $app['db']->table('jobs')->insert((array) $job);
        work($app);
        $app->make(Factory::class)->connection()->broadcast(['after'], 'end', []);
        same(['order' => 9], heard($client)[2]);
        same('end', heard($client)[1], 'the second try was not delivered again;');
    });
});
