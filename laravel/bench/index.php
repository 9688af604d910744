<?php

/** One request of php-fpm: boots the application, fires an event, and answers how long that step took. */

declare(strict_types=1);

$app = require getenv('APP_BASE_PATH') . '/bootstrap/app.php';
require_once __DIR__ . '/Pusher.php';
$connection = $_GET['connection'];
$app->afterBootstrapping(Illuminate\Foundation\Bootstrap\LoadConfiguration::class, function ($app) use ($connection) {
    [$host, $port] = explode(':', getenv('BENCH_HUB'));
    $app['config']->set('broadcasting.default', $connection);
    $app['config']->set('broadcasting.connections.pusher', [
        'driver' => 'pusher', 'key' => getenv('REALTIME_APP_KEY'), 'secret' => getenv('REALTIME_APP_SECRET'), 'app_id' => getenv('REALTIME_APP_ID'),
        'options' => ['host' => $host, 'port' => (int) $port, 'scheme' => 'http', 'useTLS' => false],
    ]);
});
$app->make(Illuminate\Contracts\Http\Kernel::class)->bootstrap();

final class BenchShipped implements Illuminate\Contracts\Broadcasting\ShouldBroadcastNow
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

// What firing any event costs in Laravel is not the driver's: its classes are loaded by one that goes nowhere.
$fire = function (string $connection): int {
    $event = new BenchShipped($connection, 7, 'shipped', [['sku' => 'A-1', 'amount' => 2], ['sku' => 'B-2', 'amount' => 1]]);
    $start = hrtime(true);
    event($event);

    return hrtime(true) - $start;
};
$laravel = [$fire('null'), $fire('null')];
echo json_encode(['null' => $laravel[1], 'first' => $fire($connection), 'second' => $fire($connection), 'driver' => get_class($app->make(Illuminate\Contracts\Broadcasting\Factory::class)->connection())]);
