<?php

/** An application on a host without a hub: its events reach the clients of another host's hub, over Redis. */

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use Realtime\Laravel\Broadcasting\Signer;
use Realtime\Laravel\Console\ServerConfig;
use Tests\Client;
use Tests\Hub;
use Tests\Process;
use Tests\RedisProcess;

use function Tests\artisan_process;
use function Tests\application_folder;
use function Tests\check;
use function Tests\contains;
use function Tests\eventually;
use function Tests\php_options;
use function Tests\same;
use function Tests\socket_path;
use function Tests\test;

$redis = new RedisProcess();
$hub = new Hub(['BROKER__URL' => $redis->url], socket_path());
eventually(fn () => str_contains($redis->command('HGET', 'realtime:rules', 'd'), 'version'), 'the hub has said what it goes by');

/** PHP code in a process of the application, on the other host. */
$there = fn (string $code, array $environment = []) => new Process(
    [PHP_BINARY, ...php_options(), '-r', 'require ' . var_export(dirname(__DIR__) . '/support/laravel.php', true) . "; $code"],
    $environment + ['REALTIME_MODE' => 'remote', 'REALTIME_BROKER__URL' => $redis->url],
);

/** A client on the private channel of the event. */
function joined(Hub $hub): Client
{
    $client = new Client($hub->url);
    $client->send(['action' => 'subscribe', 'channel' => 'private-orders.1'] + (new Signer(Tests\KEY, Tests\SECRET))->channel($client->id(), 'private-orders.1', '{"user_id":"7"}'));
    $client->next('subscribed');

    return $client;
}

test('an event reaches a browser at another host\'s hub, with and without a queue; toOthers() spares who caused it', function () use ($hub, $there) {
    [$first, $second] = [joined($hub), joined($hub)];
    $there('$app = Tests\app_with(["realtime.queue" => false]); event(new App\Events\OrderShipped(1)); $app->terminate();')->output();
    $there('Tests\app_with(["queue.default" => "sync"]); event(new App\Events\OrderShipped(2));')->output();
    $id = $first->id();
    $there("\$app = Tests\\app_with(['queue.default' => 'sync']); \$app['request']->headers->set('X-Socket-ID', '$id'); broadcast(new App\\Events\\OrderShipped(3))->toOthers();")->output();
    $there('Tests\app_with(); broadcast("private-orders.1", ["order" => 4], "shipped");')->output();
    foreach ([[$first, [1, 2, 4]], [$second, [1, 2, 3, 4]]] as [$client, $orders]) {
        same($orders, array_map(fn () => $client->next()['data']['order'], $orders));
    }
});

test('without Redis an event is a BroadcastException that names it, and not its password', function () use ($there) {
    $code = 'Tests\app_with(["queue.default" => "sync"]); try { event(new App\Events\OrderShipped(1)); } catch (Throwable $e) { echo get_class($e), ": ", $e->getMessage(); }';
    $said = $there($code, ['REALTIME_BROKER__URL' => 'unix://' . socket_path() . '?pass=geheim'])->output();
    contains('BroadcastException', $said);
    contains('no connection to redis at ', $said);
    check(!str_contains($said, 'geheim'), $said);
});

test('realtime:doctor says that messages go to Redis, and fails without it', function () use ($redis) {
    $environment = ['REALTIME_MODE' => 'remote', 'REALTIME_APP_ID' => '3', 'REALTIME_APP_KEY' => Tests\KEY, 'REALTIME_APP_SECRET' => Tests\SECRET];
    $doctor = function (string $url) use ($environment): array {
        $process = artisan_process(application_folder(), ['realtime:doctor'], ['REALTIME_BROKER__URL' => $url] + $environment);

        return [$process->wait(), $process->written() . $process->errors()];
    };
    [$status, $text] = $doctor($redis->url);
    same(0, $status, $text);
    contains('messages go to Redis', $text);
    contains('hubs of other hosts answer there', $text);
    contains('realtime:listen needs a hub', $text);
    check(!str_contains($text, 'getChannelUsers()') && !str_contains($text, 'bus'), $text);
    [$status, $text] = $doctor('unix://' . socket_path());
    same(1, $status, $text);
    contains('no connection to redis', $text);
});

test('users are asked for, and disconnected, from there', function () use ($hub, $there) {
    $client = joined($hub);
    $said = $there('Tests\app_with(); echo json_encode([array_column(getChannelUsers("private-orders.1"), "id"), count(Realtime\presence("private-orders.1")), disconnectUser("nobody"), disconnectUser(7)]);')->output();
    [$users, $count, $nobody, $closed] = json_decode($said, true);
    same([['7'], 1, 0], [$users, $count, $nobody]);
    // Those of the tests before may still be there.
    check($closed >= 1, $said);
    same(4009, $client->closeCode());
});

test('realtime:serve gives its hub the broker, and nothing where none is named', function () {
    $server = fn (array $broker) => ServerConfig::from(['server' => ['broker' => $broker, 'allowed_origins' => [], 'log' => null]], null);
    same(['allowed_origins' => []], $server(['url' => null, 'prefix' => null]));
    same(['REALTIME_BROKER__URL' => 'redis://h', 'REALTIME_ALLOWED_ORIGINS' => '[]'], ServerConfig::environment($server(['url' => 'redis://h', 'prefix' => null])));
});

$hub->stop();
