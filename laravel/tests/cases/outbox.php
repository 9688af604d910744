<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use App\Events\OrderShipped;
use App\Exceptions\Handler;
use Illuminate\Bus\Queueable;
use Illuminate\Contracts\Queue\ShouldQueue;
use Illuminate\Queue\InteractsWithQueue;
use Illuminate\Support\Facades\DB;

use function Tests\app_with;
use function Tests\check;
use function Tests\request;
use function Tests\same;
use function Tests\test;
use function Tests\work;

/** A job that fires events and ends as it is told. */
final class Ships implements ShouldQueue
{
    use InteractsWithQueue;
    use Queueable;

    public $tries = 1;

    public function __construct(private string $end = 'well') {}

    public function handle(): void
    {
        event(new OrderShipped(1));
        $this->end === 'commits' && DB::transaction(fn () => event(new OrderShipped(2)));
        match ($this->end) {
            'throws', 'commits' => throw new RuntimeException('the job failed'),
            'fails' => $this->fail(new RuntimeException('it says so itself')),
            default => null,
        };
    }
}

/** An application that sends without a queue and records what it sends. */
function application(array $config = []): array
{
    $app = app_with($config + ['realtime.queue' => false, 'realtime.fake' => true]);

    return [$app, fn () => array_column(array_column($app->make(Realtime\Laravel\Testing\RealtimeFake::class)->recorded(), 'message'), 'order')];
}

test('a request that succeeds announces its events, and no queue has them', function () {
    [$app, $sent] = application();
    same(200, request($app, 'GET', '/fire')->getStatusCode());
    same([[1], 0], [$sent(), (int) $app['db']->table('jobs')->count()]);
});

test('with queue = true they wait in the queue', function () {
    [$app, $sent] = application(['realtime.queue' => true]);
    request($app, 'GET', '/fire');
    same([[], 1], [$sent(), (int) $app['db']->table('jobs')->count()]);
});

test('nobody waits for it: the response goes first', function () {
    [$app, $sent] = application();
    $kernel = $app->make(Illuminate\Contracts\Http\Kernel::class);
    $request = Illuminate\Http\Request::create('/fire');
    $response = $kernel->handle($request);
    same([200, []], [$response->getStatusCode(), $sent()]);
    event(new OrderShipped(7));
    same([1, 7], $sent(), 'what is said behind it does not overtake it:');
    $kernel->terminate($request, $response);
    same([1, 7], $sent(), 'and it goes out once:');

    $response = $kernel->handle($request = Illuminate\Http\Request::create('/fire'));
    same([1, 7], $sent());
    $kernel->terminate($request, $response);
    same([1, 7, 1], $sent());
});

test('without a kernel that terminates, the next request or the process\' end sends it', function () {
    $child = pcntl_fork();
    if ($child === 0) {
        [$app, $sent] = application();
        $kernel = $app->make(Illuminate\Contracts\Http\Kernel::class);
        $kernel->handle(Illuminate\Http\Request::create('/fire'));
        $before = $sent();
        $kernel->handle(Illuminate\Http\Request::create('/fire'));
        $after = $sent();
        register_shutdown_function(static function () use ($before, $after, $sent): void {
            posix_kill(posix_getpid(), [$before, $after, $sent()] === [[], [1], [1, 1]] ? SIGUSR1 : SIGUSR2);
        });
        exit;
    }
    pcntl_waitpid($child, $status);
    same(SIGUSR1, pcntl_wtermsig($status));
});

test('a worker\'s request that is never terminated costs the next one nothing, and is not forgotten', function () {
    [$first] = application();
    [$second, $sent] = application();
    Illuminate\Container\Container::setInstance($first);
    Illuminate\Support\Facades\Facade::clearResolvedInstances();
    Illuminate\Support\Facades\Facade::setFacadeApplication($first);
    same(200, $first->make(Illuminate\Contracts\Http\Kernel::class)->handle(Illuminate\Http\Request::create('/fire'))->getStatusCode());
    same([], $sent());
    // As Octane does behind each request.
    $first->flush();
    same(200, request($second, 'GET', '/fire')->getStatusCode());
    same([1, 1], $sent());
});

test('while unit tests run it goes out with the response, so that they can look', function () {
    [$app, $sent] = application();
    $app['env'] = 'testing';
    $app->make(Illuminate\Contracts\Http\Kernel::class)->handle(Illuminate\Http\Request::create('/fire'));
    same([1], $sent());
});

test('a connection\'s own queue setting counts before the general one', function () {
    [$app, $sent] = application(['realtime.queue' => true, 'broadcasting.connections.realtime' => ['driver' => 'realtime', 'queue' => false]]);
    request($app, 'GET', '/fire');
    same([1], $sent());
});

test('an event for another connection as well goes through the queue', function () {
    [$app, $sent] = application();
    $event = new class extends OrderShipped {
        public function __construct()
        {
            parent::__construct(1);
        }

        public function broadcastConnections()
        {
            return ['realtime', 'log'];
        }
    };
    try {
        event($event);
        check(false, 'an anonymous class cannot be queued, so this was not sent to a queue');
    } catch (Exception $e) {
        check(str_contains($e->getMessage(), 'Serialization'), $e->getMessage());
    }
    same([], $sent());
});

test('a request that fails announces nothing', function () {
    [$app, $sent] = application();
    foreach (['/fail' => 500, '/gone' => 404, '/unavailable' => 503] as $path => $status) {
        same([$status, []], [request($app, 'GET', $path)->getStatusCode(), $sent()], "$path:");
    }
    request($app, 'GET', '/fire');
    same([1], $sent(), 'and leaves nothing behind for the next one:');
});

test('what was rolled back is not announced; what the request says besides is', function () {
    [$app, $sent] = application();
    request($app, 'GET', '/rollback');
    same([2], $sent());
});

test('a commit sends at once, in order, whatever becomes of the request', function () {
    [$app, $sent] = application();
    request($app, 'GET', '/commit');
    same([1, 2, 3], $sent());
    [$app, $sent] = application();
    same(500, request($app, 'GET', '/commit?then=fail')->getStatusCode());
    same([1, 2], $sent(), 'the third was not committed by anything:');
});

test('inside a transaction nothing goes out before the outermost commit', function () {
    [, $sent] = application();
    DB::transaction(function () use ($sent) {
        event(new OrderShipped(1));
        DB::transaction(fn () => event(new OrderShipped(2)));
        same([], $sent());
    });
    same([1, 2], $sent());
});

test('a part that was rolled back is not announced with the rest', function () {
    [, $sent] = application();
    DB::transaction(function () {
        event(new OrderShipped(1));
        try {
            DB::transaction(function () {
                event(new OrderShipped(2));
                throw new DomainException();
            });
        } catch (DomainException) {
        }
    });
    same([1], $sent());
});

test('in a command events outside of a transaction go out at once', function () {
    [, $sent] = application();
    event(new OrderShipped(1));
    same([1], $sent());
});

test('a job announces when it has ended well', function () {
    [$app, $sent] = application();
    dispatch(new Ships());
    work($app);
    same([1], $sent());
});

test('a job that throws or says that it failed announces nothing', function () {
    foreach (['throws', 'fails'] as $end) {
        [$app, $sent] = application();
        dispatch(new Ships($end));
        work($app);
        same([], $sent(), "$end:");
        dispatch(new Ships());
        work($app);
        same([1], $sent(), "after one that $end:");
    }
});

test('what a job has committed it announces, though it fails then', function () {
    [$app, $sent] = application();
    dispatch(new Ships('commits'));
    work($app);
    same([1, 2], $sent());
});

test('a synchronous job belongs to the request around it', function () {
    [$app, $sent] = application(['queue.default' => 'sync']);
    $meanwhile = null;
    $app['router']->get('/sync', function () use ($sent, &$meanwhile) {
        dispatch(new Ships());
        $meanwhile = $sent();
        throw new RuntimeException('the request fails');
    });
    request($app, 'GET', '/sync');
    same([[], []], [$meanwhile, $sent()]);
    $app['router']->get('/sync-well', function () {
        event(new OrderShipped(5));
        try {
            dispatch(new Ships('throws'));
        } catch (RuntimeException) {
        }
        dispatch(new Ships());

        return 'ok';
    });
    request($app, 'GET', '/sync-well');
    same([5, 1], $sent(), 'the failed job\'s event is gone, the others are not:');
});

test('a request that fires more than a thousand events holds no more than that', function () {
    [$app, $sent] = application();
    $app['router']->get('/many', function () use ($sent) {
        foreach (range(1, 999) as $n) {
            event(new OrderShipped($n));
        }
        same(0, count($sent()));
        event(new OrderShipped(1000));
        same(1000, count($sent()));
        event(new OrderShipped(1001));
        same(1000, count($sent()));

        return 'ok';
    });
    same(200, request($app, 'GET', '/many')->getStatusCode());
    same(1001, count($sent()));
});

test('an event says what was true when it was fired last, not a changed copy', function () {
    [, $sent] = application();
    DB::transaction(function () {
        $event = new OrderShipped(1);
        event($event);
        $event->order = 2;
    });
    same([1], $sent());
});

test('toOthers() and ShouldBroadcastNow keep their meaning', function () {
    [$app] = application();
    request($app, 'GET', '/helper', [], ['X-Socket-ID' => '1.2']);
    same('1.2', $app->make(Realtime\Laravel\Testing\RealtimeFake::class)->recorded()[0]['except']);
    [$app, $sent] = application();
    DB::transaction(function () use ($sent) {
        event(new class(3) extends OrderShipped implements Illuminate\Contracts\Broadcasting\ShouldBroadcastNow {});
        same([3], $sent());
    });
});

test('a process that answers many requests carries nothing from one to the next', function () {
    [$app, $sent] = application();
    $excepted = fn () => array_column($app->make(Realtime\Laravel\Testing\RealtimeFake::class)->recorded(), 'except');
    // Whom toOthers() spares is said by each request for itself.
    foreach (['1.2', null, '3.4', null] as $socket) {
        same(200, request($app, 'GET', '/helper', [], $socket === null ? [] : ['X-Socket-ID' => $socket])->getStatusCode());
    }
    same(['1.2', null, '3.4', null], $excepted());
    // What a request did not get to say the next one does not say for it, and an exception leaves no batch open.
    foreach (['/fail' => 500, '/gone' => 404, '/unavailable' => 503, '/batch' => 500] as $path => $status) {
        $before = count($sent());
        same($status, request($app, 'GET', $path)->getStatusCode(), $path);
        same($before, count($sent()), $path);
        check(Realtime\publish('after', ['order' => $path])->accepted, 'no batch is open');
        same(200, request($app, 'GET', '/fire')->getStatusCode());
        same([$path, 1], array_slice($sent(), $before));
    }
});

test('an outage is reported, and the request succeeds all the same', function () {
    [$app] = application(['realtime.fake' => false]);
    Realtime\Testing\fake()->restore();
    Handler::$reported = [];
    same(200, request($app, 'GET', '/fire')->getStatusCode());
    same([Illuminate\Broadcasting\BroadcastException::class], array_map('get_class', Handler::$reported));
    Handler::$reported = [];
    DB::transaction(fn () => event(new OrderShipped(1)));
    same(1, count(Handler::$reported), 'a commit does not fail either:');
});

test('where another package has put its own manager in place, that one stays', function () {
    $app = app_with(['realtime.queue' => false]);
    $other = new class($app) extends Illuminate\Broadcasting\BroadcastManager {};
    $app->forgetInstance(Illuminate\Broadcasting\BroadcastManager::class);
    $app->singleton(Illuminate\Broadcasting\BroadcastManager::class, fn () => $other);
    same($other, $app->make(Illuminate\Contracts\Broadcasting\Factory::class));
});
