<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use Realtime\Laravel\Broadcasting\Signer;
use Realtime\Laravel\Events\ChannelJoined;
use Realtime\Laravel\Events\Factory;
use Tests\Client;
use Tests\Hub;
use Tests\Process;

use function Tests\application_folder;
use function Tests\artisan_process;
use function Tests\check;
use function Tests\contains;
use function Tests\eventually;
use function Tests\same;
use function Tests\test;
use function Tests\with_program;

/** A hub whose events wait for workers. */
function queueing(array $kinds): array
{
    return ['HOOKS__EVENTS' => json_encode($kinds), 'PRESENCE_GRACE_MS' => '0'];
}

/** An application whose commands look for a restart often. */
function listening_folder(): string
{
    $folder = application_folder();
    file_put_contents("$folder/config/realtime.php", str_replace("'restart_check_seconds' => 5", "'restart_check_seconds' => 0.05", file_get_contents(getenv('REALTIME_PACKAGE') . '/config/realtime.php')));

    return $folder;
}

/** A worker that has found the hub. */
function worker(string $folder, string ...$options): Process
{
    $worker = artisan_process($folder, ['realtime:listen', ...$options]);
    $worker->expect('~Listening~');

    return $worker;
}

/** What a command says on its way to this exit status. */
function ends(int $status, string $folder, string ...$arguments): string
{
    $process = artisan_process($folder, $arguments);
    same($status, $process->wait(), $process->written() . $process->errors());

    return $process->written() . $process->errors();
}

/** What the application's listener has written. */
function heard(string $folder): array
{
    $lines = explode("\n", (string) @file_get_contents("$folder/heard"));
    array_pop($lines);

    return array_map(fn (string $line) => json_decode($line, true, flags: JSON_THROW_ON_ERROR), $lines);
}

/** The names of the messages that it has heard, once there are as many. */
function messages(string $folder, int $count): array
{
    return array_map(
        fn (array $line) => $line['name'] ?? $line['event'],
        eventually(fn () => count($lines = heard($folder)) >= $count ? $lines : null, "$count events were heard"),
    );
}

function say(Client $client, string $event): void
{
    $client->send(['action' => 'message', 'event' => $event, 'data' => ['order' => 7]]);
}

test('every event of the hub is dispatched with all that the hub says of it', function () {
    with_program(function (Hub $hub) {
        $folder = listening_folder();
        $worker = worker($folder);
        $client = new Client($hub->url);
        $socket = $client->id();
        $client->send(['action' => 'subscribe', 'channel' => 'presence-room'] + (new Signer(Tests\KEY, Tests\SECRET))->channel($socket, 'presence-room', '{"user_id":"7","user_info":{"name":"Ada"}}') + ['channel_data' => '{"user_id":"7","user_info":{"name":"Ada"}}']);
        $client->next('subscribed');
        say($client, 'hello');
        $client->send(['action' => 'unsubscribe', 'channel' => 'presence-room']);
        $client->next('unsubscribed');
        $client->drop();
        $raw = new Client($hub->url, '/ws/news?envelope=raw');
        $raw->frame(1, 'as it is');
        $raw->frame(2, "\xff\0");
        $seen = [];
        foreach (eventually(fn () => count($lines = heard($folder)) >= 14 ? $lines : null, 'everything was heard') as $line) {
            same(['atMs', 'app', 'number', 'attempt', 'dropped'], array_keys($line['delivery']));
            same(['', 1, 0], [$line['delivery']['app'], $line['delivery']['attempt'], $line['delivery']['dropped']]);
            check(abs($line['delivery']['atMs'] / 1000 - time()) < 3600, 'the time is in milliseconds');
            $numbers[] = $line['delivery']['number'];
            unset($line['delivery']);
            $seen[] = array_filter($line, fn ($value) => $value !== null);
        }
        sort($numbers);
        same(range(0, count($numbers) - 1), $numbers);
        $first = array_values(array_filter($seen, fn (array $line) => ($line['socketId'] ?? $socket) === $socket && ($line['channel'] ?? '') !== 'news'));
        $user = ['userId' => '7', 'userInfo' => ['name' => 'Ada']];
        foreach ([
            ['event' => 'ConnectionOpened', 'socketId' => $socket],
            ['event' => 'ChannelOccupied', 'channel' => 'presence-room'],
            ['event' => 'ChannelSubscribed', 'socketId' => $socket, 'channel' => 'presence-room'] + $user,
            ['event' => 'ChannelJoined', 'channel' => 'presence-room'] + $user,
            ['event' => 'MessageReceived', 'socketId' => $socket, 'data' => ['order' => 7], 'name' => 'hello'] + $user,
            ['event' => 'ChannelUnsubscribed', 'socketId' => $socket, 'channel' => 'presence-room'] + $user,
            ['event' => 'ChannelLeft', 'channel' => 'presence-room'] + $user,
            ['event' => 'ChannelVacated', 'channel' => 'presence-room'],
            ['event' => 'ConnectionClosed', 'socketId' => $socket, 'reason' => 'peer'] + $user,
        ] as $expected) {
            check(in_array($expected, $first), json_encode($expected) . ' is in ' . json_encode($first));
        }
        same(9, count($first));
        $messages = array_values(array_filter($seen, fn (array $line) => isset($line['text']) || isset($line['bytes'])));
        same([['text' => 'as it is'], ['bytes' => 'ff00']], array_map(fn (array $line) => array_intersect_key($line, ['text' => 1, 'bytes' => 1]), $messages));
        $worker->signal(SIGTERM);
        same(0, $worker->wait());
        contains('Told to stop', $worker->written());
    }, queueing(array_keys(Factory::CLASSES)));
});

test('an event can be made by hand, for the tests of a listener', function () {
    $event = new ChannelJoined('room', userId: '7');
    same(['room', '7', null, 1], [$event->channel, $event->userId, $event->userInfo, $event->delivery->attempt]);
    same(null, Factory::make(['kind' => 'danced', 'channel' => 'room']));
});

test('a worker outlives its hub: it says so, and hears the next one', function () {
    $folder = listening_folder();
    $start = fn () => new Hub(queueing(['message']));
    $hub = $start();
    $worker = worker($folder);
    say(new Client($hub->url), 'wait');
    same(['wait'], messages($folder, 1));
    // The event in hand is the first one of a hub that goes: the next hub's first one is not done with it.
    $hub->stop();
    $hub = $start();
    $client = new Client($hub->url);
    say($client, 'next');
    $client->send(['action' => 'ping']);
    $client->next('pong');
    touch("$folder/go");
    same(['wait', 'waited', 'next'], messages($folder, 3));

    $hub->stop();
    $worker->expect('~does not answer~');
    $hub = $start();
    $worker->expect('~The hub answers~');
    say(new Client($hub->url), 'last');
    same(['wait', 'waited', 'next', 'last'], messages($folder, 4));
    $worker->signal(SIGINT);
    same(0, $worker->wait());
    $hub->stop();
});

with_program(function (Hub $hub) {
    test('an exception of a listener is reported, and ends nothing', function () use ($hub) {
        $folder = listening_folder();
        $worker = worker($folder, '--max-jobs=3');
        $client = new Client($hub->url);
        foreach (['before', 'throw', 'after'] as $name) {
            say($client, $name);
        }
        same(0, $worker->wait());
        contains('3 events are done', $worker->written());
        same(['before', 'throw', 'after'], messages($folder, 3));
        same("there is no such order\n", file_get_contents("$folder/reported"));
    });

    test('on SIGTERM the event in hand is finished and acknowledged, and no other is taken', function () use ($hub) {
        $folder = listening_folder();
        $worker = worker($folder);
        $client = new Client($hub->url);
        say($client, 'wait');
        say($client, 'next');
        same(['wait'], messages($folder, 1));
        $worker->signal(SIGTERM);
        touch("$folder/go");
        same(0, $worker->wait());
        same(['wait', 'waited'], messages($folder, 2));
        ends(0, $folder, 'realtime:listen', '--max-jobs=1');
        same([['next', 1]], array_map(fn (array $line) => [$line['name'], $line['delivery']['attempt']], array_slice(heard($folder), 2)));
    });

    test('an event whose worker dies comes again to another', function () use ($hub) {
        $folder = listening_folder();
        $worker = worker($folder);
        say(new Client($hub->url), 'die');
        same(128 + SIGKILL, $worker->wait());
        $again = artisan_process($folder, ['realtime:listen']);
        same(128 + SIGKILL, $again->wait());
        same([1, 2], array_map(fn (array $line) => $line['delivery']['attempt'], heard($folder)));
        // It would come for ever.
        ends(0, $folder, 'realtime:listen', '--only=ChannelJoined', '--max-time=1');
    });

    test('realtime:restart and queue:restart end a worker', function () use ($hub) {
        foreach (['realtime:restart', 'queue:restart'] as $command) {
            $folder = listening_folder();
            $worker = worker($folder);
            ends(0, $folder, $command);
            same(0, $worker->wait());
            contains('Restart asked for', $worker->written());
        }
    });

    test('a worker ends when it is told to by its options', function () use ($hub) {
        $folder = listening_folder();
        contains('1 seconds are over', ends(0, $folder, 'realtime:listen', '--max-time=1'));
        contains('1 MB', ends(12, $folder, 'realtime:listen', '--memory=1'));
        contains('there is no event Joined', $text = ends(1, $folder, 'realtime:listen', '--only=Joined'));
        contains('ChannelJoined', $text);
        contains('--max-jobs', ends(1, $folder, 'realtime:listen', '--max-jobs=x'));
    });
}, queueing(['message']));

test('--only dispatches what it names; the rest goes unheard', function () {
    with_program(function (Hub $hub) {
        $folder = listening_folder();
        $worker = worker($folder, '--only=ChannelOccupied,message', '--max-jobs=2');
        $client = Client::subscribed($hub->url, 'news');
        say($client, 'hello');
        same(0, $worker->wait());
        $names = messages($folder, 2);
        sort($names);
        same(['ChannelOccupied', 'hello'], $names);
    }, queueing(['connect', 'subscribe', 'occupied', 'message']));
});

test('the hub of realtime:serve tells of what config/realtime.php names', function () {
    $folder = listening_folder();
    $config = "$folder/config/realtime.php";
    file_put_contents($config, str_replace("// 'hooks' => ['events' => ['joined', 'left']]", "'hooks' => ['events' => ['occupied']]", file_get_contents($config), $count));
    same(1, $count);
    touch($empty = getenv('TEST_DIRECTORY') . '/none.toml');
    $hub = artisan_process($folder, ['realtime:serve', '--binary=' . getenv('TEST_PROGRAM')], ['REALTIME_LISTEN' => '127.0.0.1:0', 'REALTIME_CONFIG' => $empty]);
    $url = $hub->expect('~(ws://[^\s,]+)~')[1];
    $worker = worker($folder, '--max-jobs=1', '-v');
    $client = Client::subscribed($url, 'news');
    same(0, $worker->wait());
    contains('ChannelOccupied news', $worker->written());
    same(['ChannelOccupied', 'news'], [heard($folder)[0]['event'], heard($folder)[0]['channel']]);
    $hub->signal(SIGTERM);
    same(0, $hub->wait());
});

test('where nothing can ever come, the worker says what is missing', function () {
    with_program(fn () => contains('hooks.events', ends(1, listening_folder(), 'realtime:listen')));
    contains('nothing to listen to', (function () {
        $process = artisan_process(listening_folder(), ['realtime:listen'], ['APP_ENV' => 'testing']);
        same(1, $process->wait());

        return $process->written() . $process->errors();
    })());
});
