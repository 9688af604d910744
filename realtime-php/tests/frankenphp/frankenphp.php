<?php

/** The extension in FrankenPHP, with the Caddyfile of php-examples/frankenphp; see scripts/frankenphp. */

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require getenv('TEST_ROOT') . '/php-examples/demo/Browser.php';

use Tests\{Client, Process};

use function Tests\{check, children, contains, eventually, free_port, lives, same, socket_path, test};

const EXAMPLE = 'php-examples/frankenphp';
const SENDERS = 8;
const REQUESTS = 200;
const PUSHER = ['name' => 'default', 'id' => '1', 'key' => 'a-key', 'secret' => 'a-secret'];

/** A FrankenPHP with the example's Caddyfile on ports of its own. */
final class FrankenPhp
{
    public readonly string $address;
    public readonly string $hub;
    public readonly string $socket;
    private readonly string $admin;
    private readonly string $caddyfile;
    private array $environment;
    private Process $process;

    /**
     * @param string $directory whose public/ is the site
     * @param string $options lines of the block `frankenphp`
     * @param ?string $hub where the hub listens; null for a free port
     */
    public function __construct(private readonly string $directory, string $options = '', ?string $hub = null)
    {
        [$port, $admin] = [free_port(), free_port()];
        $this->address = "127.0.0.1:$port";
        $this->hub = $hub ?? '127.0.0.1:' . free_port();
        $this->admin = "127.0.0.1:$admin";
        $this->socket = socket_path();
        $place = getenv('TEST_DIRECTORY') . '/' . bin2hex(random_bytes(4));
        mkdir($place);
        file_put_contents("$place/realtime.ini", 'extension=' . getenv('TEST_EXTENSION') . "\n");
        $this->caddyfile = "$place/Caddyfile";
        $text = str_replace('127.0.0.1:8080', $this->hub, file_get_contents(getenv('TEST_ROOT') . '/' . EXAMPLE . '/Caddyfile'), $hubs);
        same(2, $hubs, 'places that name the hub:');
        $text = str_replace("\tfrankenphp {\n", "\tfrankenphp {\n$options\n", $text, $blocks);
        same(1, $blocks, 'blocks of FrankenPHP:');
        file_put_contents($this->caddyfile, $text);
        $this->environment = [
            'HTTP_PORT' => (string) $port,
            'CADDY_ADMIN' => $this->admin,
            'XDG_CONFIG_HOME' => $place,
            'XDG_DATA_HOME' => $place,
            'PHP_INI_SCAN_DIR' => $place,
            'REALTIME_SOCKET' => $this->socket,
            'REALTIME_APPS' => json_encode([PUSHER]),
        ];
        $this->start();
    }

    public function start(): void
    {
        $this->process = new Process([getenv('TEST_FRANKENPHP'), 'run', ...$this->config()], $this->environment, $this->directory);
        $this->process->expect('~serving initial configuration~');
    }

    /** Loads the configuration anew, as `systemctl reload frankenphp` does; with text that is replaced in it. */
    public function reload(array $changes = []): void
    {
        file_put_contents($this->caddyfile, strtr(file_get_contents($this->caddyfile), $changes));
        (new Process([getenv('TEST_FRANKENPHP'), 'reload', '--force', ...$this->config()], $this->environment, $this->directory))->output();
    }

    public function restartWorkers(): void
    {
        file_get_contents("http://$this->admin/frankenphp/workers/restart", context: stream_context_create(['http' => ['method' => 'POST']]));
    }

    public function pid(): int
    {
        return $this->process->pid();
    }

    public function said(): string
    {
        return $this->process->written() . $this->process->errors();
    }

    /** What a request of tests/frankenphp/public/index.php answers. */
    public function ask(array $query = []): array
    {
        $answer = (string) file_get_contents("http://$this->address/?" . http_build_query($query));
        return json_decode($answer, true) ?? throw new Tests\Failed("$answer\n" . $this->said());
    }

    /** The status of the answer to a POST of the example's form. */
    public function post(string $text): string
    {
        $options = ['method' => 'POST', 'header' => 'Content-Type: application/x-www-form-urlencoded', 'content' => http_build_query(['text' => $text]), 'ignore_errors' => true];
        file_get_contents("http://$this->address/", context: stream_context_create(['http' => $options]));
        return $http_response_header[0];
    }

    /** What the hub says of itself. */
    public function status(): array
    {
        $process = new Process([dirname((string) getenv('TEST_EXTENSION')) . '/realtime', 'status', '--json', '--socket', $this->socket, '--config', '/dev/null']);
        return json_decode($process->output(), true, flags: JSON_THROW_ON_ERROR);
    }

    /** Ends it as a service manager does. */
    public function stop(): void
    {
        $pid = $this->pid();
        $this->process->signal(SIGTERM);
        same(0, $this->process->wait(), $this->said());
        check(!lives($pid), 'FrankenPHP has ended');
    }

    private function config(): array
    {
        return ['--adapter', 'caddyfile', '--config', $this->caddyfile];
    }
}

/** Each of several clients has all its requests broadcast: every text comes exactly once, and each client's in order. */
function nothing_is_lost(FrankenPhp $server, array $clients, int $offset = 0): void
{
    $senders = [];
    for ($i = 0; $i < SENDERS; $i++) {
        $senders[] = new Process([PHP_BINARY, '-n', __DIR__ . '/send.php', $server->address, "s$i", (string) REQUESTS]);
    }
    foreach ($clients as $client) {
        $next = array_fill(0, SENDERS, 0);
        for ($i = 0; $i < SENDERS * REQUESTS; $i++) {
            $message = $client->next();
            same(++$offset, $message['offset']);
            check(preg_match('~^s(\d)/(\d+)$~', $message['data'], $match) === 1, $message['data']);
            same($next[$match[1]]++, (int) $match[2], "$message[data]:");
        }
        same(array_fill(0, SENDERS, REQUESTS), $next);
        $offset -= SENDERS * REQUESTS;
    }
    foreach ($senders as $sender) {
        $sender->output();
    }
}

test('the hub starts with the server: site, /ws, /app and /apps are on one port, and what a page sends reaches two browsers', function () {
    $server = new FrankenPhp(getenv('TEST_ROOT') . '/' . EXAMPLE);
    // Before any request: no broadcast has woken the hub.
    $client = Client::subscribed($server->address, 'chat');
    same($server->pid(), $server->status()['pid']);
    $pusher = new Client($server->address, '/app/' . PUSHER['key'] . '?protocol=7');
    same('pusher:connection_established', json_decode($pusher->read()[1], true)['event']);
    file_get_contents("http://$server->address/apps/1/channels", context: stream_context_create(['http' => ['ignore_errors' => true]]));
    contains(' 401 ', $http_response_header[0]);
    contains('<title>FrankenPHP</title>', file_get_contents("http://$server->address/"));

    foreach (['hello' => 204, '' => 422, "\xff" => 422, str_repeat('x', 1000) => 204, str_repeat('x', 1001) => 422] as $text => $status) {
        contains(" $status ", $server->post((string) $text));
    }
    same(['line', ['text' => 'hello']], array_values(array_intersect_key($client->next(), ['event' => 1, 'data' => 1])));
    same(1000, strlen($client->next()['data']['text']));

    $browsers = [];
    try {
        foreach ([1, 2] as $count) {
            $browsers[] = $browser = new Browser(Browser::program());
            $browser->open("http://$server->address/");
            eventually(fn () => ($server->status()['subscriptions'] ?? 0) >= 1 + $count, "$count pages have subscribed");
        }
        $browsers[0]->evaluate("form.text.value = 'from a page'; form.requestSubmit()");
        foreach ($browsers as $browser) {
            $lines = "[...document.querySelectorAll('#lines li')].map(line => line.textContent)";
            same(['from a page'], $browser->until($lines, fn ($lines) => (bool) $lines, Tests\DEADLINE_S));
            same([], $browser->complaints);
        }
    } finally {
        array_map(fn (Browser $browser) => $browser->close(), $browsers);
    }
    same('from a page', $client->next()['data']['text']);
    $server->stop();
});

foreach (['classic mode' => '', 'worker mode' => "worker public/index.php 4\nnum_threads 6"] as $mode => $options) {
    test("$mode: requests that run at the same time lose nothing, and what one leaves behind the next does not find", function () use ($options) {
        $server = new FrankenPhp(__DIR__, $options);
        $clients = [Client::subscribed($server->address, 'load'), Client::subscribed($server->hub, 'load')];
        nothing_is_lost($server, $clients);
        $answer = $server->ask();
        same([$server->pid(), 'frankenphp', $options !== ''], [$answer['pid'], $answer['sapi'], $answer['worker']]);
        // A worker's requests are one request of PHP's.
        check(($answer['served'] > 1) === $answer['worker'], json_encode($answer));
        // On every thread, whichever answers.
        for ($i = 0; $i < 40; $i++) {
            $leave = ['off', 'fake', 'exit', 'throw'][$i % 4];
            @file_get_contents("http://$server->address/?leave=$leave", context: stream_context_create(['http' => ['ignore_errors' => true]]));
            $server->ask(['text' => "after $i"]);
            same(["after $i", "after $i"], array_map(fn (Client $client) => $client->next()['data'], $clients));
        }
        $server->stop();
    });

    test("$mode: a configuration that is loaded anew, and workers that restart, keep the hub and every WebSocket", function () use ($options) {
        $server = new FrankenPhp(__DIR__, $options);
        $clients = [Client::subscribed($server->address, 'load'), Client::subscribed($server->hub, 'load')];
        $before = $server->status();
        $offset = 0;
        foreach (['reload', 'restartWorkers', 'reload', 'reload', 'restartWorkers'] as $at => $change) {
            $server->ask(['text' => "before $at"]);
            $server->$change();
            $then = $server->ask(['text' => "after $at"]);
            same(1, $then['served'], "the first request after $change():");
            foreach (["before $at", "after $at"] as $text) {
                $offset++;
                foreach ($clients as $client) {
                    same([$text, $offset], array_values(array_intersect_key($client->next(), ['data' => 1, 'offset' => 1])));
                }
            }
        }
        // Requests while the workers restart.
        $senders = array_map(fn (int $i) => new Process([PHP_BINARY, '-n', __DIR__ . '/send.php', $server->address, "s$i", '50']), range(1, 4));
        for ($i = 0; $i < 5; $i++) {
            $server->restartWorkers();
        }
        foreach ($senders as $sender) {
            $sender->output();
        }
        foreach ($clients as $client) {
            for ($i = 1; $i <= 200; $i++) {
                same($offset + $i, $client->next()['offset']);
            }
        }
        // However often PHP's engine ends, one thread at most waits for it to come back.
        $threads = array_map(fn ($thread) => trim((string) @file_get_contents($thread)), glob("/proc/{$server->pid()}/task/*/comm"));
        check(in_array('rt-control', $threads, true) && count(array_keys($threads, 'rt-grace', true)) <= 1, implode(' ', $threads));
        // Another address comes with the next start; until then the hub is where its clients are.
        $server->reload(["php_ini realtime.listen $server->hub" => 'php_ini realtime.listen 127.0.0.1:0']);
        contains('the hub goes on with the settings of its start, restart the server to change them: ', $server->said());
        $server->ask(['text' => 'still here']);
        same(['still here', 'still here'], array_map(fn (Client $client) => $client->next()['data'], $clients));
        $after = $server->status();
        same($before['pid'], $after['pid']);
        check($after['uptime_ms'] >= $before['uptime_ms'], 'the hub is the same one');
        same(1, substr_count($server->said(), 'embedded hub, listening'), 'hubs that were started:');
        $server->stop();
    });
}

test('a stop ends everything, with clients connected; the next start finds its ports and its socket', function () {
    $server = new FrankenPhp(__DIR__, 'worker public/index.php 2');
    for ($i = 0; $i < 2; $i++) {
        $clients = [Client::subscribed($server->address, 'load'), Client::subscribed($server->hub, 'load')];
        $server->ask(['text' => 'hello']);
        foreach ($clients as $client) {
            same(['hello', 1], array_values(array_intersect_key($client->next(), ['data' => 1, 'offset' => 1])));
        }
        same([], children($server->pid()));
        $server->stop();
        foreach ([$server->address, $server->hub] as $address) {
            check(@stream_socket_client("tcp://$address") === false, "nobody listens on $address");
        }
        foreach ($clients as $client) {
            Tests\throws(Tests\Failed::class, 'the server closed', fn () => $client->next());
        }
        $server->start();
    }
    $server->stop();
});

test('a hub that cannot start does not keep the site from starting, and the log says why', function () {
    $taken = stream_socket_server('tcp://127.0.0.1:0');
    $address = stream_socket_get_name($taken, false);
    $server = new FrankenPhp(__DIR__, hub: $address);
    contains('the hub did not start with the server: ', $server->said());
    same(['pid' => $server->pid(), 'sapi' => 'frankenphp'], array_intersect_key($server->ask(), ['pid' => 1, 'sapi' => 1]));
    $server->stop();
});
