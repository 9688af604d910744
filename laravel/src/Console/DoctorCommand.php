<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Broadcasting\BroadcastManager;
use Illuminate\Console\Command;
use Realtime\Exception\ConfigError;
use Realtime\Exception\InvalidChannel;
use Realtime\Exception\RealtimeException;
use Realtime\Laravel\Broadcasting\Manager;
use Realtime\Laravel\Client\Runtime;

/** Looks for what keeps events from reaching browsers; changes nothing. */
class DoctorCommand extends Command
{
    protected $signature = 'realtime:doctor';

    protected $description = 'Look for what is wrong with broadcasting, one line each, with what mends it';

    private int $broken = 0;

    public function handle(): int
    {
        $config = $this->laravel['config'];
        $default = $config['broadcasting.default'] ?? 'null';
        $driver = $default === 'null' ? 'null' : $config["broadcasting.connections.$default.driver"] ?? null;
        match ($driver) {
            'realtime' => $this->fine("events go to the connection \"$default\" (driver realtime)"),
            'null', 'log', null => $this->bad("events go nowhere: the default broadcast connection is \"$default\"", 'set BROADCAST_CONNECTION=realtime (Laravel 11 and later) or BROADCAST_DRIVER=realtime'),
            default => $this->doubt("events go through the driver \"$driver\"", 'BROADCAST_CONNECTION=realtime spares the HTTP request'),
        };

        extension_loaded('realtime')
            ? $this->fine('the extension is loaded')
            : $this->doubt('the extension is not loaded; PHP code publishes instead, to ' . Runtime::current()->client()->describe(), 'install it; broadcast(\'channel\', $message) needs it');

        $app = $config['realtime.app'];
        ($app['key'] ?? '') !== '' && ($app['secret'] ?? '') !== ''
            ? $this->fine('the app has a key and a secret')
            : $this->bad('the app has no key or no secret: private channels cannot be joined', 'php artisan realtime:install');

        get_class($this->laravel->make(BroadcastManager::class)) === Manager::class
            ? $this->fine($config['realtime.queue'] === false ? 'ShouldBroadcast events go out without a queue' : 'ShouldBroadcast events go through a queue worker')
            : $this->doubt('another package has replaced the broadcast manager', '"queue" => false has no effect with it');

        $this->laravel['router']->getRoutes()->refreshNameLookups();
        $uris = array_map(fn ($route) => $route->uri(), $this->laravel['router']->getRoutes()->getRoutes());
        in_array('broadcasting/auth', $uris, true)
            ? $this->fine('the route broadcasting/auth is there')
            : $this->bad('there is no route broadcasting/auth: private channels cannot be joined', 'call Broadcast::routes() in a service provider, or withBroadcasting() in bootstrap/app.php');

        try {
            // Only the extension knows what its mode is: it does not read .env.
            try {
                \Realtime\stats();
                $this->fine('the hub answers');
            } catch (ConfigError $e) {
                str_contains($e->getMessage(), 'realtime.mode is remote') || throw $e;
                $this->checkBroker();
            }
        } catch (RealtimeException $e) {
            $this->bad($e->getMessage(), 'start a hub with php artisan realtime:serve, or set where it is');
        }

        return $this->broken === 0 ? 0 : 1;
    }

    private function checkBroker(): void
    {
        try {
            \Realtime\history('realtime-doctor', 1);
        } catch (InvalidChannel) {
            // The hubs' rules were read: they keep nothing of it.
        }
        $this->fine('realtime.mode is remote: messages go to Redis, and hubs of other hosts have been there');
        try {
            count(\Realtime\presence('realtime-doctor'));
            $this->fine('hubs of other hosts answer there');
        } catch (RealtimeException $e) {
            $this->bad("nobody delivers what is published, or says who is there: {$e->getMessage()}", 'start a hub with that Redis on some host');
        }
        $this->doubt('realtime:listen needs a hub on this host', 'run it where a hub is');
    }

    private function fine(string $what): void
    {
        $this->line("  <info>ok</info>      $what");
    }

    private function doubt(string $what, string $fix): void
    {
        $this->line("  <comment>doubt</comment>   $what\n          $fix");
    }

    private function bad(string $what, string $fix): void
    {
        $this->broken++;
        $this->line("  <error>broken</error>  $what\n          $fix");
    }
}
