<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use App\Events\OrderShipped;
use Illuminate\Broadcasting\EncryptedPrivateChannel;
use Illuminate\Broadcasting\PrivateChannel;
use Illuminate\Contracts\Broadcasting\Factory;
use Realtime\Laravel\Facades\Realtime;
use Realtime\Testing\AssertionFailed;
use Tests\Client;
use Tests\Hub;

use function Tests\app_with;
use function Tests\same;
use function Tests\test;
use function Tests\throws;
use function Tests\with_program;
use function Tests\work;

/** An application as a test-suite boots it. */
function under_test(array $config = []): Illuminate\Foundation\Application
{
    putenv('APP_ENV=testing');
    try {
        return app_with($config + ['realtime.queue' => false]);
    } finally {
        putenv('APP_ENV');
    }
}

with_program(function (Hub $hub) {
    $client = Client::subscribed($hub->url, 'news', 'end');

    test('in unit tests nothing reaches a running hub, whoever sends', function () use ($client) {
        $app = under_test();
        $app->make(Factory::class)->connection()->broadcast(['news'], 'e', []);
        \Realtime\publish('news', 1);
        broadcastToUser(7, 'hello');
        extension_loaded('realtime') && broadcast('news', 2);
        same(0, disconnectUser(7));
        Realtime::assertBroadcastTimes('news', extension_loaded('realtime') ? 3 : 2);
        Realtime::assertBroadcastToUser(7);
        Realtime::assertDisconnected(7);
        \Realtime\Testing\fake()->restore();
        \Realtime\publish('end', 1);
        same('end', $client->next()['channel']);
    });

    test('realtime.fake = false lets a test-suite reach one', function () use ($client) {
        under_test(['realtime.fake' => false]);
        \Realtime\publish('end', 2);
        same(2, $client->next()['data']);
    });
});

test('assertions hold, and fail with what there was', function () {
    under_test();
    event(new OrderShipped(7));
    $channel = new PrivateChannel('orders.1');
    Realtime::assertBroadcast($channel);
    Realtime::assertBroadcast('private-orders.1', 'shipped');
    Realtime::assertBroadcast($channel, 'shipped', fn (array $message) => $message['order'] === 7);
    Realtime::assertBroadcast($channel, fn (array $message, string $event) => $event === 'shipped');
    Realtime::assertNotBroadcast($channel, 'returned');
    Realtime::assertNotBroadcast('orders.1');
    Realtime::assertBroadcastTimes($channel, 1);
    foreach ([
        fn () => Realtime::assertBroadcast('private-orders.2'),
        fn () => Realtime::assertBroadcast($channel, 'returned'),
        fn () => Realtime::assertBroadcast($channel, 'shipped', fn (array $message) => $message['order'] === 8),
        fn () => Realtime::assertBroadcastToUser(7),
        fn () => Realtime::assertNothingBroadcast(),
    ] as $assertion) {
        throws(AssertionFailed::class, 'private-orders.1 shipped', $assertion);
    }
    throws(AssertionFailed::class, '1 unexpected', fn () => Realtime::assertNotBroadcast($channel));
    throws(AssertionFailed::class, '1 messages', fn () => Realtime::assertBroadcastTimes($channel, 2));
    throws(AssertionFailed::class, '', fn () => Realtime::assertDisconnected(7));
    Realtime::fake();
    Realtime::assertNothingBroadcast();
});

test('frames are those that pusher-js gets', function () {
    $app = under_test();
    event(new OrderShipped(7));
    same([['event' => 'shipped', 'channel' => 'private-orders.1', 'data' => '{"order":7}']], Realtime::frames('private-orders.1'));
    Realtime::assertFrame('private-orders.1', ['event' => 'shipped', 'data' => '{"order":7}']);
    throws(AssertionFailed::class, '"data":"{\"order\":7}"', fn () => Realtime::assertFrame('private-orders.1', ['event' => 'returned']));
    \Realtime\publish('news', '5');
    same('"5"', Realtime::frames('news')[0]['data'], 'a string stays one:');
    $app->make(Factory::class)->connection()->broadcast([new EncryptedPrivateChannel('x')], 'e', ['n' => 1]);
    same(['nonce', 'ciphertext'], array_keys(json_decode(Realtime::frames('private-encrypted-x')[0]['data'], true)));
});

test('each application of a test-suite starts with nothing', function () {
    under_test();
    event(new OrderShipped(1));
    under_test();
    Realtime::assertNothingBroadcast();
});

test('a queued event is recorded when a worker has sent it', function () {
    $app = under_test(['realtime.queue' => true]);
    event(new OrderShipped(1));
    Realtime::assertNothingBroadcast();
    work($app);
    Realtime::assertBroadcast('private-orders.1');
});
