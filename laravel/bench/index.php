<?php

/** One request of php-fpm: boots the application, fires an event, and answers how long that step took. */

declare(strict_types=1);

$app = require getenv('APP_BASE_PATH') . '/bootstrap/app.php';
require_once __DIR__ . '/Pusher.php';
$connection = $_GET['connection'];
$app->afterBootstrapping(Illuminate\Foundation\Bootstrap\LoadConfiguration::class, function ($app) use ($connection) {
    [$host, $port] = explode(':', getenv('BENCH_HUB'));
    $app['config']->set('broadcasting.default', $connection);
    $app['config']->set('broadcasting.connections.held', ['driver' => 'realtime', 'queue' => false]);
    $app['config']->set('broadcasting.connections.pusher', [
        'driver' => 'pusher', 'key' => getenv('REALTIME_APP_KEY'), 'secret' => getenv('REALTIME_APP_SECRET'), 'app_id' => getenv('REALTIME_APP_ID'),
        'options' => ['host' => $host, 'port' => (int) $port, 'scheme' => 'http', 'useTLS' => false],
    ]);
});
$app->make(Illuminate\Contracts\Http\Kernel::class)->bootstrap();

class BenchHeld implements Illuminate\Contracts\Broadcasting\ShouldBroadcast
{
    public function __construct(private string $connection, public int $order, public string $state, public array $items) {}

    public function broadcastConnections(): array
    {
        return [$this->connection];
    }

    public function broadcastOn(): Illuminate\Broadcasting\Channel
    {
        return new Illuminate\Broadcasting\Channel('orders');
    }
}

final class BenchShipped extends BenchHeld implements Illuminate\Contracts\Broadcasting\ShouldBroadcastNow {}

final class BenchPlain
{
    public function __construct(public string $connection, public int $order, public string $state, public array $items) {}
}

$outbox = $app->make(Realtime\Laravel\Broadcasting\Outbox::class);
$fire = function (string $connection) use ($outbox): int {
    $class = ['held' => BenchHeld::class, 'plain' => BenchPlain::class][$connection] ?? BenchShipped::class;
    $event = new $class($connection, 7, 'shipped', [['sku' => 'A-1', 'amount' => 2], ['sku' => 'B-2', 'amount' => 1]]);
    // As the middleware around a request does.
    $start = hrtime(true);
    $outbox->begin();
    event($event);
    $outbox->commitAfterResponse();

    return hrtime(true) - $start;
};
// What firing any event costs in Laravel is not the driver's: its classes are loaded by one that goes nowhere.
$fire('null');
$answer = ['plain' => $fire('plain'), 'null' => $fire('null'), 'first' => $fire($connection)];
// The next request would send it.
$start = hrtime(true);
$outbox->responded();
$answer['behind'] = hrtime(true) - $start;
$answer['second'] = $fire($connection);
echo json_encode($answer + ['driver' => get_class($app->make(Illuminate\Contracts\Broadcasting\Factory::class)->connection())]);
fastcgi_finish_request();
$outbox->responded();
