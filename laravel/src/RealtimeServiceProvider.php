<?php

declare(strict_types=1);

namespace Realtime\Laravel;

use Illuminate\Broadcasting\BroadcastManager;
use Illuminate\Container\Container as CurrentContainer;
use Illuminate\Contracts\Container\Container;
use Illuminate\Contracts\Events\Dispatcher;
use Illuminate\Contracts\Http\Kernel;
use Illuminate\Database\Events\TransactionCommitted;
use Illuminate\Queue\Events\JobExceptionOccurred;
use Illuminate\Queue\Events\JobProcessed;
use Illuminate\Queue\Events\JobProcessing;
use Illuminate\Support\ServiceProvider;
use Realtime\Laravel\Broadcasting\HoldUntilResponse;
use Realtime\Laravel\Broadcasting\IdempotencyKeys;
use Realtime\Laravel\Broadcasting\Manager;
use Realtime\Laravel\Broadcasting\Outbox;
use Realtime\Laravel\Broadcasting\RealtimeBroadcaster;
use Realtime\Laravel\Broadcasting\Signer;
use Realtime\Laravel\Client\BusClient;
use Realtime\Laravel\Client\Client;
use Realtime\Laravel\Client\HttpClient;
use Realtime\Laravel\Client\Runtime;
use Realtime\Laravel\Facades\Realtime;
use Realtime\Laravel\Testing\RealtimeFake;

/** Puts the hub behind Laravel's broadcasting: `register` binds, `boot` integrates. */
class RealtimeServiceProvider extends ServiceProvider
{
    public function register(): void
    {
        $this->mergeConfigFrom(__DIR__ . '/../config/realtime.php', 'realtime');
        $config = $this->app['config'];
        // BROADCAST_CONNECTION=realtime is enough; an application may still write the connection down.
        if ($config->get('broadcasting.connections.realtime') === null) {
            $config->set('broadcasting.connections.realtime', ['driver' => 'realtime']);
        }

        $this->app->singleton(Outbox::class, fn ($app) => new Outbox($app));
        $this->app->singleton(IdempotencyKeys::class);
        $this->app->extend(BroadcastManager::class, static function ($manager, $app) {
            // A manager of somebody else's stays; then events go through queues.
            return get_class($manager) === BroadcastManager::class ? new Manager($app) : $manager;
        });
        // Since Laravel 13.5 the manager binds such closures to itself: there `$this` and `self` are the manager.
        $this->callAfterResolving(BroadcastManager::class, static function ($manager): void {
            $manager->extend('realtime', static fn ($app, $config) => RealtimeServiceProvider::broadcaster($app, $config));
        });
    }

    public function boot(): void
    {
        $this->quieten();
        if (!extension_loaded('realtime') || $this->transport() !== 'auto') {
            Runtime::current()->connect($this->client());
        }
        $this->followWork();
        if ($this->sendsWithoutQueue()) {
            $this->callAfterResolving(Kernel::class, static function ($kernel): void {
                method_exists($kernel, 'prependMiddleware') && $kernel->prependMiddleware(HoldUntilResponse::class);
            });
        }
        if ($this->app->runningInConsole()) {
            $this->publishes([__DIR__ . '/../config/realtime.php' => $this->app->configPath('realtime.php')], ['realtime', 'realtime-config']);
            $this->commands([
                Console\InstallCommand::class,
                Console\ServeCommand::class,
                Console\StartCommand::class,
                Console\ListenCommand::class,
                Console\StatusCommand::class,
                Console\DoctorCommand::class,
                Console\RestartCommand::class,
            ]);
        }
    }

    /** A driver for one entry of `broadcasting.connections`; what it does not say, `config/realtime.php` does. */
    public static function broadcaster(Container $app, array $connection): RealtimeBroadcaster
    {
        $config = $connection + $app['config']['realtime'];
        $direct = !extension_loaded('realtime') || $config['transport'] !== 'auto';
        $publish = static fn (array $channels, string $json, string $event, array $options) => $direct && !$app->bound(RealtimeFake::class)
            ? Runtime::current()->publish($channels, $json, $event, $options)
            : \Realtime\publish($channels, $json, $event, $options);

        return new RealtimeBroadcaster(
            new Signer(
                $connection['key'] ?? $config['app']['key'] ?? null,
                $connection['secret'] ?? $config['app']['secret'] ?? null,
                $config['encryption_master_key'] ?? null,
            ),
            $publish,
            // Most requests run no job; then nothing is made for one.
            static fn (string $event, string $json) => $app->resolved(IdempotencyKeys::class) ? $app->make(IdempotencyKeys::class)->next($event, $json) : null,
            (bool) ($config['sign_user'] ?? true),
            (bool) ($config['jsonp'] ?? false),
        );
    }

    private function transport(): string
    {
        return $this->app['config']['realtime.transport'] ?? 'auto';
    }

    private function client(): Client
    {
        $config = $this->app['config']['realtime'];
        if ($this->transport() === 'http' || $this->transport() === 'auto' && ($config['url'] ?? '') !== '') {
            return new HttpClient((string) $config['url'], (string) $config['app']['id'], (string) $config['app']['key'], (string) $config['app']['secret']);
        }

        return self::bus($config);
    }

    /** The hub's bus as `config/realtime.php` says where it is. */
    public static function bus(array $config): BusClient
    {
        $sockets = $config['socket'] ?? null;

        return new BusClient($sockets === null ? null : BusClient::addresses($sockets), $config['secret'] ?? null, $config['socket_ca'] ?? null);
    }

    /** Records in unit tests; sends nothing where events go nowhere either. */
    private function quieten(): void
    {
        $config = $this->app['config'];
        $fake = $config['realtime.fake'] ?? null;
        $default = $config['broadcasting.default'] ?? 'null';
        $driver = $default === 'null' ? 'null' : $config["broadcasting.connections.$default.driver"] ?? null;
        if ($fake ?? $this->app->runningUnitTests()) {
            Realtime::fake();
        } elseif ($fake === null && in_array($driver, ['null', 'log'], true) && !$this->isOwnCommand()) {
            \Realtime\off();
        }
    }

    /** The commands of this package run or ask a hub, wherever events go. */
    private function isOwnCommand(): bool
    {
        return $this->app->runningInConsole() && str_starts_with((string) ($_SERVER['argv'][1] ?? ''), 'realtime:');
    }

    private function sendsWithoutQueue(): bool
    {
        $config = $this->app['config'];
        foreach ($config['broadcasting.connections'] as $connection) {
            if (($connection['driver'] ?? null) === 'realtime' && ($connection['queue'] ?? $config['realtime.queue']) === false) {
                return true;
            }
        }

        return false;
    }

    private function followWork(): void
    {
        $this->callAfterResolving('events', static function (Dispatcher $events): void {
            // In a worker that answers many requests each has an application of its own.
            $make = static fn (string $class) => CurrentContainer::getInstance()->make($class);
            $events->listen(JobProcessing::class, static function ($event) use ($make): void {
                $make(IdempotencyKeys::class)->begin($event->job->uuid());
                $make(Outbox::class)->begin();
            });
            $end = static function ($event) use ($make): void {
                $failed = $event instanceof JobExceptionOccurred || $event->job->hasFailed();
                $failed ? $make(Outbox::class)->rollBack() : $make(Outbox::class)->commit();
                $make(IdempotencyKeys::class)->end();
            };
            $events->listen(TransactionCommitted::class, static fn () => $make(Outbox::class)->committed());
            $events->listen(JobProcessed::class, $end);
            $events->listen(JobExceptionOccurred::class, $end);
        });
    }
}
