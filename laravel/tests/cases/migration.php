<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use Tests\Client;
use Tests\Process;

use function Tests\app_with;
use function Tests\application_folder;
use function Tests\artisan;
use function Tests\check;
use function Tests\contains;
use function Tests\eventually;
use function Tests\free_port;
use function Tests\same;
use function Tests\test;

/** The first fenced block of a language in a guide. */
function block(string $guide, string $language): string
{
    $text = file_get_contents(dirname(__DIR__, 3) . "/docs/migrate-from-$guide.md");
    check(preg_match("/^```$language\n(.*?)^```$/ms", $text, $match) === 1, "$guide has no block of $language");

    return $match[1];
}

/** The hub as a guide says, but for the port and the socket; the WebSocket address that it names. */
function hub(string $option, string $file, string $text): array
{
    $path = getenv('TEST_DIRECTORY') . "/$file";
    file_put_contents($path, $text);
    $empty = getenv('TEST_DIRECTORY') . '/empty.toml';
    touch($empty);
    $environment = ['REALTIME_LISTEN' => '127.0.0.1:0', 'REALTIME_SOCKET' => getenv('REALTIME_SOCKET')] + ($option === '--env-file' ? ['REALTIME_CONFIG' => $empty] : []);
    $process = new Process([getenv('TEST_PROGRAM'), 'serve', $option, $path], $environment);

    return [$process, $process->expect('~listens on (ws://[^\s,]+)~')[1]];
}

/** A signed POST to the HTTP API, as the application's SDK makes it. */
function trigger(string $url, string $id, string $key, string $secret): void
{
    $client = new Realtime\Laravel\Client\HttpClient(preg_replace('~^ws(://[^/]+).*~', 'http$1', $url), $id, $key, $secret);
    $client->publish([new Realtime\Laravel\Client\Publication('news', false, 'e', Realtime\Laravel\Client\Publication::JSON, '{"n":1}')]);
}

foreach (['reverb' => ['123456', 'reverb-key', 'reverb-secret'], 'pusher' => ['987654', 'pusher-key', 'pusher-secret']] as $guide => $app) {
    test("migrate-from-$guide: the application's own file starts the hub, and its SDK reaches a page", function () use ($guide, $app) {
        [$hub, $url] = hub('--env-file', '.env', block($guide, 'dotenv'));
        $client = Client::subscribed($url, 'news');
        trigger($url, ...$app);
        same(['n' => 1], $client->next()['data']);
        $hub->signal(SIGTERM);
        same(0, $hub->wait());
    });

    test("migrate-from-$guide: realtime:install keeps the app and switches the driver; the old name switches back", function () use ($guide, $app) {
        $folder = application_folder();
        file_put_contents("$folder/config/broadcasting.php", str_replace("'connections' => [\n", "'connections' => [\n        '$guide' => ['driver' => 'null'],\n", file_get_contents("$folder/config/broadcasting.php")));
        file_put_contents("$folder/.env", block($guide, 'dotenv'));
        artisan(app_with(['realtime.fake' => false], $folder), 'realtime:install', ['--no-echo' => true]);
        $env = file_get_contents("$folder/.env");
        contains('BROADCAST_CONNECTION=realtime', $env);
        contains("_APP_KEY=$app[1]", $env);
        same(str_replace("BROADCAST_CONNECTION=$guide", 'BROADCAST_CONNECTION=realtime', block($guide, 'dotenv')), substr($env, 0, strlen(block($guide, 'dotenv')) + strlen('realtime') - strlen($guide)), 'nothing else of the file was changed:');
    });
}

test('the .env of a fresh application after realtime:install starts the hub with its app', function () {
    $folder = application_folder();
    file_put_contents("$folder/.env", "APP_URL=http://localhost\nBROADCAST_CONNECTION=log\n");
    artisan(app_with(['realtime.fake' => false], $folder), 'realtime:install', ['--no-echo' => true]);
    $env = file_get_contents("$folder/.env");
    preg_match_all('/^REALTIME_APP_\w+=(.+)$/m', $env, $app);
    [$hub, $url] = hub('--env-file', '.env', $env);
    $client = Client::subscribed($url, 'news');
    trigger($url, ...$app[1]);
    same(['n' => 1], $client->next()['data']);
    $hub->signal(SIGTERM);
    same(0, $hub->wait());
});

test('migrate-from-soketi: its app\'s id, key and secret serve its clients', function () {
    [$hub, $url] = hub('--config', 'realtime.toml', block('soketi', 'toml'));
    $client = Client::subscribed($url, 'news');
    trigger($url, 'app-id', 'app-key', 'app-secret');
    same(['n' => 1], $client->next()['data']);
    $hub->signal(SIGTERM);
    same(0, $hub->wait());
});

test('migrate-from-node-bridge: what was posted is published, and arrives at the page\'s address', function () {
    [$hub, $url] = hub('--config', 'realtime.toml', block('node-bridge', 'toml'));
    $client = new Client($url, '/ws/device.7');
    $client->next('subscribed');
    eval(block('node-bridge', 'php'));
    same(['temperature' => 21.5], $client->next()['data']);
    $raw = new Client($url, '/ws/device.7?envelope=raw');
    // The raw envelope says nothing of its own, so the hub is asked whether the page is there.
    eventually(fn () => in_array(['name' => 'device.7', 'subscribers' => 2], Realtime\channels(), true), 'the second page had subscribed');
    Realtime\publish('device.7', 'bare');
    $client->next();
    same('bare', $raw->read()[1]);
    $hub->signal(SIGTERM);
    $hub->wait();
});

test('migrate-from-ratchet: a publication and a relayed chat message arrive', function () {
    [$hub, $url] = hub('--config', 'realtime.toml', block('ratchet', 'toml'));
    $client = Client::subscribed($url, 'kittens');
    eval(block('ratchet', 'php'));
    same(['title' => 'New article'], $client->next()['data']);
    [$one, $other] = [Client::subscribed($url, 'chat-1'), Client::subscribed($url, 'chat-1')];
    $one->send(['action' => 'publish', 'channel' => 'chat-1', 'event' => 'line', 'data' => 'hi']);
    same('hi', $other->next()['data']);
    $hub->signal(SIGTERM);
    $hub->wait();
});

test('migrate-from-frankenphp-module: auth.php says who connects, and the functions reach that user', function () {
    $port = free_port();
    $site = getenv('TEST_DIRECTORY') . '/site';
    mkdir($site);
    file_put_contents("$site/auth.php", '<?php header("Content-Type: application/json"); if (($_COOKIE["session"] ?? "") !== "good") { http_response_code(401); exit; } echo json_encode(["id" => "user-123"]);');
    $server = new Process([PHP_BINARY, '-n', '-S', "127.0.0.1:$port", '-t', $site]);
    $server->expect('/Development Server/');
    [$hub, $url] = hub('--config', 'realtime.toml', str_replace('127.0.0.1:8000', "127.0.0.1:$port", block('frankenphp-module', 'toml')));
    $client = new Client($url, '/ws', ['Cookie: session=good', 'Origin: http://127.0.0.1']);
    $client->send(['action' => 'subscribe', 'channel' => 'news']);
    $client->next('subscribed');
    if (extension_loaded('realtime')) {
        eval(block('frankenphp-module', 'php'));
        same('Hello', $client->next()['data']);
    } else {
        broadcastToUser('user-123', ['text' => 'for you']);
    }
    same(['text' => 'for you'], $client->next()['data']);
    same('user-123', getChannelUsers('news')[0]['id']);
    same(1, disconnectUser('user-123'));
    $hub->signal(SIGTERM);
    $hub->wait();
});
