<?php

/**
 * A small Laravel application: the framework's container, events, queue and broadcasting, with a
 * driver that remembers what it is asked to send. Runs in the command line and under php-fpm.
 */

declare(strict_types=1);

// Laravel 8 on PHP 8.2 has deprecations that are not ours to judge.
error_reporting(E_ALL & ~E_DEPRECATED);

require '/usr/share/php/Illuminate/autoload.php';

use Illuminate\Broadcasting\Broadcasters\Broadcaster;
use Illuminate\Broadcasting\{BroadcastServiceProvider, InteractsWithSockets, PrivateChannel};
use Illuminate\Config\Repository;
use Illuminate\Contracts\Broadcasting\ShouldBroadcastNow;
use Illuminate\Foundation\Application;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Facade;

final class OrderShipped implements ShouldBroadcastNow
{
    use InteractsWithSockets;

    public function __construct(public int $order) {}

    public function broadcastOn(): PrivateChannel
    {
        return new PrivateChannel("orders.{$this->order}");
    }
}

final class Remembering extends Broadcaster
{
    public static array $sent = [];

    public function auth($request)
    {
        return true;
    }

    public function validAuthenticationResponse($request, $result)
    {
        return $result;
    }

    public function broadcast(array $channels, $event, array $payload = [])
    {
        self::$sent[] = [array_map('strval', $channels), $event, $payload];
    }
}

/** The application, its current request coming from this socket. */
function application(?string $socketId): Application
{
    $app = new Application(sys_get_temp_dir());
    $app->instance('config', new Repository(['broadcasting' => ['default' => 'remembering', 'connections' => ['remembering' => ['driver' => 'remembering']]], 'queue' => ['default' => 'sync', 'connections' => ['sync' => ['driver' => 'sync']]]]));
    $request = Request::create('/');
    if ($socketId !== null) {
        $request->headers->set('X-Socket-ID', $socketId);
    }
    $app->instance('request', $request);
    Facade::setFacadeApplication($app);
    $app->register(Illuminate\Bus\BusServiceProvider::class);
    $app->register(Illuminate\Queue\QueueServiceProvider::class);
    $app->register(BroadcastServiceProvider::class);
    $app->make(Illuminate\Broadcasting\BroadcastManager::class)->extend('remembering', fn () => new Remembering());
    return $app;
}

/** Everything that the helper rule promises, as what came of it. */
function laravel_results(): array
{
    $app = application('1.2');
    $results = ['broadcast' => (new ReflectionFunction('broadcast'))->isInternal()];

    Remembering::$sent = [];
    broadcast(new OrderShipped(1))->toOthers();
    $results['toOthers'] = Remembering::$sent;

    Remembering::$sent = [];
    broadcast(event: new OrderShipped(2));
    $results['named'] = Remembering::$sent;

    Remembering::$sent = [];
    $pending = broadcast(new OrderShipped(3));
    $results['pending'] = $pending::class;
    $results['not before it is released'] = Remembering::$sent;
    unset($pending);
    $results['released'] = count(Remembering::$sent);

    $pending = broadcast();
    $results['none'] = $pending::class;
    try {
        unset($pending);
    } catch (TypeError) {
        // Laravel 8 dispatches the null event, later versions refuse it.
    }

    $fake = Realtime\Testing\fake();
    $results['two arguments'] = broadcast(new PrivateChannel('a'), ['n' => 1]);
    $results['recorded'] = array_map(fn ($record) => [$record['channel'], $record['message']], $fake->recorded());
    $fake->restore();

    // Under the facade's own fake nothing is sent, as with Laravel's helper.
    Remembering::$sent = [];
    $app->instance(Illuminate\Contracts\Broadcasting\Factory::class, new class {
        public function event($event = null)
        {
            return 'from the container';
        }
    });
    $results['container'] = broadcast(new OrderShipped(4));
    return $results;
}
