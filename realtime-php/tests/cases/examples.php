<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Tests\{Client, Process};

use function Tests\{check, contains, free_port, same, test};

$examples = getenv('TEST_ROOT') . '/php-examples';

/** What each lesson must print, as a pattern. */
const EXPECTED = [
    '01-hello/hello.php' => '~^\{"type":"message","channel":"news","event":"message","data":\{"title":"Hello","rating":5\.0\},"offset":1\}\n\{.*"event":"note","data":"plain text stays plain text","offset":2\}\n$~',
    '02-users/users.php' => '~^Ada \(user 42\) is here with 2 connections\nlaptop: .*only for you.*\nphone:  .*only for you.*\nphone:  .*Ada typed this.*\nguest:  .*Ada typed this.*\nclosed: 2\nlaptop: gone\n$~',
    '03-binary/binary.php' => '~^refused: .*not valid UTF-8.*\n\{.*"event":"frame","offset":1\} and 1008 bytes, the same\n\{.*"data":\{"width":640,"height":480\}.*\}\n$~',
    '04-testing/test.php' => '~^2 messages recorded, every assertion holds\nand one that does not: Nothing was broadcast on channel \[orders\.43\]\.\n$~',
    '05-loop/loop.php' => '~^answer: evil\ntick 1\ntick 2\ntick 3\n$~',
];

foreach (EXPECTED as $file => $pattern) {
    test("php-examples/$file shows what it promises", function () use ($examples, $file, $pattern) {
        $output = (new Process([PHP_BINARY, ...Tests\php_options(), "$examples/$file"]))->output();
        check(preg_match($pattern, $output) === 1, $output);
    });

    test("php-examples/$file has a README with its command", function () use ($examples, $file) {
        contains("php-examples/$file", file_get_contents("$examples/" . dirname($file) . '/README.md'));
    });
}

test('php-examples/chat: a line that is posted to php-fpm through nginx reaches every page, on one port', function () use ($examples) {
    $port = free_port();
    $chat = new Process([PHP_BINARY, ...Tests\php_options(), "$examples/chat/chat.php"], ['HTTP_PORT' => (string) $port]);
    $chat->expect("~Open http://127.0.0.1:$port/~");
    contains('<title>Chat</title>', file_get_contents("http://127.0.0.1:$port/"));
    $clients = [new Client("127.0.0.1:$port", '/ws/chat'), new Client("127.0.0.1:$port", '/ws/chat')];
    foreach ($clients as $client) {
        $client->next('subscribed');
    }
    $post = fn (array $fields) => stream_context_create(['http' => ['method' => 'POST', 'header' => 'Content-Type: application/x-www-form-urlencoded', 'content' => http_build_query($fields), 'ignore_errors' => true]]);
    foreach ([['name' => 'Zoë', 'text' => 'hello'], ['name' => '', 'text' => '<b>']] as $fields) {
        $answer = file_get_contents("http://127.0.0.1:$port/", context: $post($fields));
        check(str_contains($http_response_header[0], ' 204 '), "$http_response_header[0]: $answer");
    }
    file_get_contents("http://127.0.0.1:$port/", context: $post(['text' => "\xff"]));
    contains(' 422', $http_response_header[0]);
    foreach ($clients as $client) {
        same(['name' => 'Zoë', 'text' => 'hello'], $client->next()['data']);
        same(['name' => 'somebody', 'text' => '<b>'], $client->next()['data']);
    }
    $chat->signal(SIGINT);
    same([0, 1001], [$chat->wait(), $clients[0]->closeCode()]);
    contains('php-examples/chat/chat.php', file_get_contents("$examples/chat/README.md"));
});

test('php-examples/auth: a session\'s WebSockets are its user\'s, and end with it', function () use ($examples) {
    $port = free_port();
    $site = new Process([PHP_BINARY, ...Tests\php_options(), "$examples/auth/auth.php"], ['HTTP_PORT' => (string) $port]);
    $site->expect("~Open http://127.0.0.1:$port/~");
    /** Posts a form with a session's cookie; the cookie that comes back. */
    $post = function (string $cookie, array $fields) use ($port): string {
        $headers = "Content-Type: application/x-www-form-urlencoded\r\nCookie: $cookie";
        $options = ['method' => 'POST', 'header' => $headers, 'content' => http_build_query($fields), 'ignore_errors' => true, 'follow_location' => 0];
        $answer = file_get_contents("http://127.0.0.1:$port/", context: stream_context_create(['http' => $options]));
        check(preg_match('~ (204|303) ~', $http_response_header[0]) === 1, "$http_response_header[0]: $answer");
        $cookies = preg_filter('~^Set-Cookie: (PHPSESSID=[^;]+).*~i', '$1', $http_response_header);
        return $cookies === [] ? $cookie : end($cookies);
    };
    $open = fn (string $cookie) => new Client("127.0.0.1:$port", '/ws', ["Origin: http://127.0.0.1:$port", "Cookie: theme=dark; $cookie"]);
    [$ada, $bob] = [$post('', ['action' => 'login', 'name' => 'Ada']), $post('', ['action' => 'login', 'name' => 'Bob'])];
    $clients = [$open($ada), $open($ada), $open($bob)];
    same(['ada', 'ada', 'bob'], array_map(fn (Client $client) => $client->next('connected')['user_id'], $clients));
    $post($ada, ['action' => 'note', 'text' => 'for Ada']);
    $post($bob, ['action' => 'note', 'text' => 'for Bob']);
    same(['for Ada', 'for Ada', 'for Bob'], array_map(fn (Client $client) => $client->next()['data']['text'], $clients));
    foreach (['PHPSESSID=made-up', ''] as $cookie) {
        same(4009, $open($cookie)->closeCode());
    }
    $post($ada, ['action' => 'logout']);
    same([4009, 4009, 4009], [$clients[0]->closeCode(), $clients[1]->closeCode(), $open($ada)->closeCode()]);
    $post($bob, ['action' => 'note', 'text' => 'still here']);
    same('still here', $clients[2]->next()['data']['text']);
    $site->signal(SIGINT);
    same([0, 1001], [$site->wait(), $clients[2]->closeCode()]);
    contains('php-examples/auth/auth.php', file_get_contents("$examples/auth/README.md"));
});

test('php-examples/poller: 120 dashboards get what the poller reads, and its crash drops none of them', function () use ($examples) {
    $start = new Process([PHP_BINARY, ...Tests\php_options(), "$examples/poller/start.php"], ['HUB_PORT' => '0', 'PAGE_PORT' => '0']);
    [, $page, $url, $poller] = $start->expect('~Open    (\S+)\s+hub     (\S+)\s+poller  pid (\d+)~');
    contains('<title>100 devices, live</title>', file_get_contents($page));
    $dashboards = array_map(fn (int $number) => Client::subscribed($url, 'device.' . $number % 100), range(0, 119));
    $first = array_map(fn (Client $dashboard) => $dashboard->next(), $dashboards);
    foreach ($first as $number => $message) {
        same(['device.' . $number % 100, 'reading', (int) $poller], [$message['channel'], $message['event'], $message['data']['poller']]);
    }
    posix_kill((int) $poller, SIGKILL);
    [, $next] = $start->expect('~started anew: pid (\d+)~');
    foreach ($dashboards as $number => $dashboard) {
        // What was on its way first; then the next poller's, over the same connection and with the offsets that follow.
        $offset = $first[$number]['offset'];
        do {
            $message = $dashboard->next();
            same(++$offset, $message['offset']);
        } while ($message['data']['poller'] === (int) $poller);
        same((int) $next, $message['data']['poller']);
    }
    $start->signal(SIGINT);
    same([0, 1001], [$start->wait(), $dashboards[0]->closeCode()]);
    contains('php-examples/poller/start.php', file_get_contents("$examples/poller/README.md"));
});

test('php-examples/frankenphp: what is posted to the page reaches every WebSocket', function () use ($examples) {
    $hub = new Tests\HubProcess();
    $client = Client::subscribed($hub->url, 'chat');
    $port = free_port();
    $site = new Process([PHP_BINARY, ...Tests\php_options(), '-S', "127.0.0.1:$port", '-t', "$examples/frankenphp/public"]);
    $site->expect('~Development Server .* started~');
    contains('<title>FrankenPHP</title>', file_get_contents("http://127.0.0.1:$port/"));
    $post = fn (string $text) => stream_context_create(['http' => ['method' => 'POST', 'header' => 'Content-Type: application/x-www-form-urlencoded', 'content' => http_build_query(['text' => $text]), 'ignore_errors' => true]]);
    foreach (['hello' => '204', '' => '422', "\xff" => '422', str_repeat('x', 1000) => '204', str_repeat('x', 1001) => '422'] as $text => $status) {
        file_get_contents("http://127.0.0.1:$port/", context: $post((string) $text));
        contains(" $status ", $http_response_header[0]);
    }
    same(['line', ['text' => 'hello']], array_values(array_intersect_key($client->next(), ['event' => 1, 'data' => 1])));
    same(1000, strlen($client->next()['data']['text']));
    $hub->stop();
});

test('every lesson is tested, and every example is on the list', function () use ($examples) {
    preg_match_all('~^\| \[`([^`]+)`\]\(\1\) \| \w.*\|$~m', file_get_contents("$examples/README.md"), $listed);
    same(array_map('basename', glob("$examples/*", GLOB_ONLYDIR)), (fn (array $names) => sort($names) ? $names : [])($listed[1]));
    same(array_map('dirname', array_keys(EXPECTED)), array_map('basename', glob("$examples/[0-9]*", GLOB_ONLYDIR)));
});

require_once "$examples/demo/Browser.php";

/** A headless Chromium whose pages may reach each other on this host alone. */
function browser(string $url): Browser
{
    $browser = new Browser(Browser::program(), ['--allow-loopback-in-peer-connection', '--disable-features=WebRtcHideLocalIpsWithMdns']);
    $browser->open($url);
    return $browser;
}

test('php-examples/webrtc-signalling: two Chromium pages establish a data channel; a third finds the room full', function () use ($examples) {
    $signalling = new Process([PHP_BINARY, ...Tests\php_options(), "$examples/webrtc-signalling/signalling.php"], ['HUB_PORT' => '0', 'PAGE_PORT' => '0']);
    $page = $signalling->expect('~Open (http://\S+)~')[1];
    $browsers = [browser("$page?room=a%20b"), browser("$page?room=a%20b")];
    try {
        foreach ($browsers as $browser) {
            check($browser->until('report.state', fn ($state) => $state === 'talking directly', Tests\DEADLINE_S) !== null, json_encode($browser->evaluate('report')) . implode('; ', $browser->complaints));
        }
        $browsers[0]->evaluate("say('over the data channel')");
        $browsers[1]->evaluate("say('and back')");
        same(['and back'], $browsers[0]->until('report.received', fn ($received) => $received !== [], Tests\DEADLINE_S));
        same(['over the data channel'], $browsers[1]->until('report.received', fn ($received) => $received !== [], Tests\DEADLINE_S));
        $signals = array_map(fn (Browser $browser) => $browser->evaluate('report.signals'), $browsers);
        usort($signals, fn ($one, $other) => $one[0]['peers'] <=> $other[0]['peers']);
        foreach ($signals as $at => $seen) {
            same([['type' => 'joined', 'room' => 'a b', 'peers' => $at + 1], ['type' => 'ready', 'message' => 'Both peers connected']], $seen);
        }
        $browsers[] = $third = browser("$page?room=a%20b");
        same(4001, $third->until('report.closed', fn ($code) => $code !== null, Tests\DEADLINE_S));
        same([['type' => 'error', 'message' => 'Room is full']], $third->evaluate('report.signals'));
        $browsers[0]->close();
        same(['type' => 'peer_disconnected', 'message' => 'Other peer disconnected'], $browsers[1]->until('report.signals[2]', fn ($signal) => $signal !== null, Tests\DEADLINE_S));
        same([], $browsers[1]->complaints);
    } finally {
        array_map(fn (Browser $browser) => $browser->close(), $browsers);
    }
    $signalling->signal(SIGINT);
    same(0, $signalling->wait());
    contains('php-examples/webrtc-signalling/signalling.php', file_get_contents("$examples/webrtc-signalling/README.md"));
});

test('php-examples/presence: pages see who comes and goes, and a second window of somebody is no news', function () use ($examples) {
    $online = new Process([PHP_BINARY, ...Tests\php_options(), "$examples/presence/online.php"], ['HUB_PORT' => '0', 'PAGE_PORT' => '0', 'REALTIME_PRESENCE_GRACE_MS' => '0']);
    $page = $online->expect('~Open (http://\S+)~')[1];
    $ada = browser("$page?name=Ada");
    try {
        $sees = fn (array $expected) => same($expected, $ada->until('report()', fn ($seen) => $seen === $expected, Tests\DEADLINE_S));
        $sees(['ada']);
        $bob = browser("$page?name=Bob");
        $sees(['ada', 'bob']);
        same('2', $ada->evaluate("document.querySelector('#count').textContent"));
        $bob->close();
        $sees(['ada']);
        same([], $ada->complaints);
        $online->signal(SIGINT);
        $online->expect('~^1 online: ada$~m');
    } finally {
        $ada->close();
    }
    same(0, $online->wait());
    contains('php-examples/presence/online.php', file_get_contents("$examples/presence/README.md"));
});
