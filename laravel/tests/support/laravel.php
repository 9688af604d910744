<?php

/** A copy of the test application for one test file, booted as artisan and index.php boot theirs. */

declare(strict_types=1);

namespace Tests;

require dirname(__DIR__, 3) . '/realtime-php/tests/support/harness.php';
require __DIR__ . '/hub.php';
require dirname(__DIR__) . '/app/bootstrap/autoload.php';

use Illuminate\Contracts\Console\Kernel as ConsoleKernel;
use Illuminate\Contracts\Http\Kernel as HttpKernel;
use Illuminate\Http\Request;

const KEY = '278d425bdf160c739803';
const SECRET = '7ad3773142a6692b25b8';
const MASTER_KEY = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=';

/** Copies the application's folder; the path of the copy. */
function application_folder(): string
{
    // What the .env of an earlier application put into this process is none of this one's.
    foreach (array_keys(getenv()) as $name) {
        if (preg_match('/^(BROADCAST|REALTIME_APP|REVERB|PUSHER|VITE)_/', $name)) {
            putenv($name);
            unset($_ENV[$name], $_SERVER[$name]);
        }
    }
    $folder = getenv('TEST_DIRECTORY') . '/app-' . bin2hex(random_bytes(4));
    $source = dirname(__DIR__) . '/app';
    foreach (new \RecursiveIteratorIterator(new \RecursiveDirectoryIterator($source, \FilesystemIterator::SKIP_DOTS)) as $file) {
        $copy = $folder . substr((string) $file, strlen($source));
        is_dir(dirname($copy)) || mkdir(dirname($copy), 0700, true);
        copy((string) $file, $copy);
    }
    foreach (['storage/framework/cache', 'storage/framework/views', 'storage/logs', 'vendor/composer', 'views', 'bootstrap/cache'] as $name) {
        is_dir("$folder/$name") || mkdir("$folder/$name", 0700, true);
    }
    // What Composer would have written when it installed the package: this is how Laravel finds the provider.
    $package = json_decode(file_get_contents(getenv('REALTIME_PACKAGE') . '/composer.json'), true);
    file_put_contents("$folder/vendor/composer/installed.json", json_encode(['packages' => [$package]]));
    $database = new \PDO("sqlite:$folder/database.sqlite");
    $database->exec('create table jobs (id integer primary key autoincrement, queue text, payload text, attempts integer, reserved_at integer, available_at integer, created_at integer)');
    $database->exec('create table orders (id integer primary key autoincrement, state text)');

    return $folder;
}

/** Boots an application. `$config` is set before the providers are registered, by dotted names. */
function app_with(array $config = [], ?string $folder = null): \Illuminate\Foundation\Application
{
    $folder ??= application_folder();
    putenv("APP_BASE_PATH=$folder");
    $app = require "$folder/bootstrap/app.php";
    putenv('APP_BASE_PATH');
    $config += [
        'realtime.app' => ['id' => '3', 'key' => KEY, 'secret' => SECRET],
        'realtime.encryption_master_key' => MASTER_KEY,
        'realtime.socket' => getenv('REALTIME_SOCKET'),
    ];
    $app->afterBootstrapping(\Illuminate\Foundation\Bootstrap\LoadConfiguration::class, function ($app) use ($config) {
        // Ours to set before the package merges its defaults below it.
        $app['config']->set('realtime', require getenv('REALTIME_PACKAGE') . '/config/realtime.php');
        foreach ($config as $name => $value) {
            $app['config']->set($name, $value);
        }
    });
    $app->make(ConsoleKernel::class)->bootstrap();

    return $app;
}

/** What the application answers to a request. */
function request(\Illuminate\Foundation\Application $app, string $method, string $path, array $input = [], array $headers = []): \Symfony\Component\HttpFoundation\Response
{
    $request = Request::create($path, $method, $input);
    $request->headers->set('Accept', 'application/json');
    foreach ($headers as $name => $value) {
        $request->headers->set($name, $value);
    }
    // A test may have booted another application since.
    \Illuminate\Container\Container::setInstance($app);
    \Illuminate\Support\Facades\Facade::clearResolvedInstances();
    \Illuminate\Support\Facades\Facade::setFacadeApplication($app);
    // A guard keeps its user, and here one process answers many requests.
    $app['auth']->forgetGuards();
    $kernel = $app->make(HttpKernel::class);
    $response = $kernel->handle($request);
    $kernel->terminate($request, $response);

    return $response;
}

/** Runs an artisan command; its exit status and what it wrote. */
function artisan(\Illuminate\Foundation\Application $app, string $command, array $arguments = []): array
{
    $kernel = $app->make(ConsoleKernel::class);
    $status = $kernel->call($command, $arguments);

    return [$status, $kernel->output()];
}

/** `php artisan …` as a process of its own. */
function artisan_process(string $folder, array $arguments, array $environment = []): Process
{
    return new Process([PHP_BINARY, ...php_options(), __DIR__ . '/artisan.php', $folder, ...$arguments], $environment);
}

/** Lets a queue worker do everything that waits. */
function work(\Illuminate\Foundation\Application $app, array $arguments = []): string
{
    return artisan($app, 'queue:work', ['--stop-when-empty' => true, '--sleep' => 0] + $arguments)[1];
}
