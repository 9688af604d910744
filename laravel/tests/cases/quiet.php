<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use Tests\Client;
use Tests\Hub;

use function Tests\app_with;
use function Tests\same;
use function Tests\test;
use function Tests\throws;
use function Tests\with_program;

// Cannot be undone within a process, hence a file of its own.
with_program(function (Hub $hub) {
    $client = Client::subscribed($hub->url, 'news');

    test('with realtime as the default connection the functions send', function () use ($client) {
        app_with();
        Realtime\publish('news', 1);
        same(1, $client->next()['data']);
    });

    test('with null or log as the default connection they check their arguments and send nothing', function () use ($client) {
        foreach (['null', 'log'] as $connection) {
            app_with(['broadcasting.default' => $connection, 'realtime.fake' => false]);
            Realtime\publish('news', $connection);
            same($connection, $client->next()['data'], 'fake = false sends all the same:');
        }
        foreach (['null', 'log'] as $connection) {
            app_with(['broadcasting.default' => $connection]);
            same(false, Realtime\publish('news', 'lost')->accepted);
            broadcastToUser(7, 'lost');
            throws(Realtime\Exception\InvalidChannel::class, '', fn () => Realtime\publish('', 1));
        }
        $client->send(['action' => 'ping']);
        same('pong', json_decode($client->read()[1], true)['type'], 'nothing came before the answer:');
    });
});
