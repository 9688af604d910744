<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use Illuminate\Contracts\Console\Kernel;
use Realtime\Laravel\Client\BusClient;
use Realtime\Laravel\Client\Publication;
use Realtime\Laravel\Console\ServerConfig;
use Tests\Client;
use Tests\Hub;
use Tests\Process;

use function Tests\app_with;
use function Tests\application_folder;
use function Tests\artisan;
use function Tests\artisan_process;
use function Tests\check;
use function Tests\contains;
use function Tests\same;
use function Tests\test;
use function Tests\with_program;

/** A folder with the files of an application that has just been made. */
function fresh_folder(string $env = "APP_URL=http://localhost\n\nBROADCAST_CONNECTION=log\n"): string
{
    $folder = application_folder();
    file_put_contents("$folder/.env", $env);
    file_put_contents("$folder/composer.json", json_encode(['scripts' => ['dev' => ['Composer\\Config::disableProcessTimeout', 'npx concurrently -c "#93c5fd,#c4b5fd" "php artisan serve" "npm run dev" --names=server,vite']]], JSON_UNESCAPED_SLASHES));
    mkdir("$folder/resources/js", 0755, true);
    file_put_contents("$folder/resources/js/app.js", "import './bootstrap';\n");
    file_put_contents("$folder/resources/js/bootstrap.js", "import axios from 'axios';\n");

    return $folder;
}

/** Every file of a folder that the command may write, with its content. */
function written(string $folder): array
{
    $files = [];
    foreach (['.env', 'composer.json', 'config/realtime.php', 'config/broadcasting.php', 'resources/js/echo.js', 'resources/js/bootstrap.js', 'resources/js/app.js', 'resources/js/app.jsx'] as $name) {
        $files[$name] = is_file("$folder/$name") ? file_get_contents("$folder/$name") : null;
    }

    return $files;
}

test('realtime:install sets up an application, and a second run changes nothing', function () {
    $folder = fresh_folder();
    [$status, $output] = artisan($app = app_with([], $folder), 'realtime:install');
    same(0, $status, $output);
    contains('realtime:listen', $output);
    $files = written($folder);
    contains('BROADCAST_CONNECTION=realtime', $files['.env']);
    check(preg_match('/^REALTIME_APP_ID=\d{6}$/m', $files['.env']) && preg_match('/^REALTIME_APP_KEY=[a-z0-9]{20}$/m', $files['.env']) && preg_match('/^REALTIME_APP_SECRET=[0-9a-f]{40}$/m', $files['.env']), $files['.env']);
    contains('VITE_REALTIME_APP_KEY="${REALTIME_APP_KEY}"', $files['.env']);
    $config = eval('?>' . $files['config/broadcasting.php']);
    same(['driver' => 'realtime'], $config['connections']['realtime']);
    check($files['config/realtime.php'] === file_get_contents(getenv('REALTIME_PACKAGE') . '/config/realtime.php'), 'config/realtime.php is there');
    contains("broadcaster: 'reverb'", $files['resources/js/echo.js']);
    contains("import './echo';", $files['resources/js/bootstrap.js']);
    contains('"php artisan serve" "npm run dev" "php artisan realtime:serve" --names=server,vite,realtime', json_decode($files['composer.json'], true)['scripts']['dev'][1]);
    artisan($app, 'realtime:install');
    same($files, written($folder));
});

test('an application that had Reverb or Pusher keeps their app', function () {
    foreach (['REVERB', 'PUSHER'] as $name) {
        $folder = fresh_folder("BROADCAST_CONNECTION=null\n{$name}_APP_ID=3\n{$name}_APP_KEY=k\n{$name}_APP_SECRET=s\n");
        artisan(app_with([], $folder), 'realtime:install', ['--no-echo' => true]);
        $env = file_get_contents("$folder/.env");
        check(!str_contains($env, "\nREALTIME_APP_KEY"), $env);
        contains("VITE_REALTIME_APP_KEY=\"\${{$name}_APP_KEY}\"", $env);
        same(null, written($folder)['resources/js/echo.js']);
    }
});

test('browsers look for the hub where they looked for Reverb', function () {
    $folder = fresh_folder("BROADCAST_CONNECTION=null\nREVERB_APP_KEY=k\nREVERB_HOST=ws.test\nREVERB_PORT=443\nREVERB_SCHEME=https\n");
    artisan(app_with([], $folder), 'realtime:install', ['--no-echo' => true]);
    $env = file_get_contents("$folder/.env");
    contains('VITE_REALTIME_HOST="${REVERB_HOST}"', $env);
    contains('VITE_REALTIME_PORT="${REVERB_PORT}"', $env);
    contains('VITE_REALTIME_SCHEME="${REVERB_SCHEME}"', $env);
});

test('before Laravel 11 the default connection has another name', function () {
    $folder = fresh_folder("BROADCAST_DRIVER=log\n");
    artisan(app_with([], $folder), 'realtime:install');
    check(preg_match('/^BROADCAST_DRIVER=realtime$/m', $env = file_get_contents("$folder/.env")) === 1 && !str_contains($env, 'BROADCAST_CONNECTION'), $env);
});

test('with React or Vue the entry file configures Echo', function () {
    foreach (['react', 'vue'] as $front) {
        $folder = fresh_folder();
        file_put_contents("$folder/package.json", json_encode(['devDependencies' => [$front => '*']]));
        file_put_contents("$folder/resources/js/app.jsx", "start();\n");
        artisan(app_with([], $folder), 'realtime:install');
        $text = file_get_contents("$folder/resources/js/app.jsx");
        contains("from '@laravel/echo-$front'", $text);
        check(str_ends_with($text, "start();\n"), 'what was there stays below it');
    }
    same(1, artisan(app_with([], fresh_folder()), 'realtime:install', ['--front' => 'svelte'])[0]);
});

test('an echo.js of the application\'s own is not touched', function () {
    $folder = fresh_folder();
    file_put_contents("$folder/resources/js/echo.js", "mine();\n");
    contains("broadcaster: 'reverb'", artisan(app_with([], $folder), 'realtime:install')[1]);
    same("mine();\n", file_get_contents("$folder/resources/js/echo.js"));
});

test('the hub\'s settings come from config/realtime.php, the app and APP_URL', function () {
    $realtime = ['app' => ['id' => 3, 'key' => 'k', 'secret' => 's'], 'server' => ['listen' => '127.0.0.1:0', 'socket' => null, 'auth' => ['mode' => 'none'], 'limits' => ['max_connections' => 5]]];
    $config = ServerConfig::from($realtime, 'https://shop.example:8443/path');
    same(['listen' => '127.0.0.1:0', 'auth' => ['mode' => 'none'], 'limits' => ['max_connections' => 5], 'apps' => [['name' => 'default', 'id' => '3', 'key' => 'k', 'secret' => 's']], 'allowed_origins' => ['default', 'https://shop.example:8443']], $config);
    same(['REALTIME_LISTEN' => '127.0.0.1:0', 'REALTIME_AUTH__MODE' => 'none', 'REALTIME_LIMITS__MAX_CONNECTIONS' => '5', 'REALTIME_APPS' => '[{"name":"default","id":"3","key":"k","secret":"s"}]', 'REALTIME_ALLOWED_ORIGINS' => '["default","https://shop.example:8443"]'], ServerConfig::environment($config));
    same(['*'], ServerConfig::from(['server' => ['allowed_origins' => ['*']]], 'https://x')['allowed_origins']);
    same([], ServerConfig::from([], null));
});

test('realtime:serve runs the hub: status, doctor, a message, restart, and a clean end on TERM', function () {
    $folder = application_folder();
    $environment = [
        'REALTIME_LISTEN' => '127.0.0.1:0', 'REALTIME_APP_ID' => '3', 'REALTIME_APP_KEY' => Tests\KEY, 'REALTIME_APP_SECRET' => Tests\SECRET, 'APP_URL' => 'http://shop.example',
        'REALTIME_CONFIG' => getenv('TEST_DIRECTORY') . '/none.toml',
    ];
    touch($environment['REALTIME_CONFIG']);
    file_put_contents("$folder/config/realtime.php", str_replace("'restart_check_seconds' => 5", "'restart_check_seconds' => 0.05", file_get_contents(getenv('REALTIME_PACKAGE') . '/config/realtime.php')));
    $serve = fn (string $command) => artisan_process($folder, [$command, '--binary=' . getenv('TEST_PROGRAM')], ['BROADCAST_CONNECTION' => 'log'] + $environment);
    $url = fn (Process $process) => $process->expect('~(ws://[^\s,]+)~')[1];

    $hub = $serve('realtime:serve');
    $client = Client::subscribed($url($hub), 'news');
    (new BusClient([getenv('REALTIME_SOCKET')]))->publish([new Publication('news', false, 'e', Publication::JSON, '{"n":1}')]);
    same(['n' => 1], $client->next()['data']);

    $ask = function (string $command, array $more = []) use ($folder, $environment) {
        $process = artisan_process($folder, [$command, ...$more], $environment);

        return [$process->wait(), $process->written() . $process->errors()];
    };
    [$status, $json] = $ask('realtime:status', ['--json']);
    same([0, 1], [$status, json_decode($json, true)['connections']]);
    [$status, $table] = $ask('realtime:status');
    check($status === 0 && preg_match("/connections\s*\|?\s*1\b/", $table) === 1, json_encode([$status, $table]));
    [$status, $text] = $ask('realtime:doctor');
    same(0, $status, $text);
    contains('the hub answers', $text);
    contains('broadcasting/auth is there', $text);

    same(0, $ask('realtime:restart')[0]);
    same(0, $hub->wait());
    [$status, $text] = $ask('realtime:doctor');
    same(1, $status, $text);
    contains('no hub', $text);
    contains('realtime:serve', $text);
    same(1, $ask('realtime:status')[0]);

    $hub = $serve('realtime:start');
    $url($hub);
    $hub->signal(SIGTERM);
    same(0, $hub->wait());
});

test('realtime:doctor names what keeps events from browsers', function () {
    $app = app_with(['realtime.app' => ['id' => null, 'key' => null, 'secret' => null], 'broadcasting.default' => 'log', 'realtime.fake' => false]);
    [$status, $text] = artisan($app, 'realtime:doctor');
    same(1, $status);
    contains('BROADCAST_CONNECTION=realtime', $text);
    contains('realtime:install', $text);
});
