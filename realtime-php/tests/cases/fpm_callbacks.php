<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require __DIR__ . '/../support/fpm.php';
require __DIR__ . '/../support/nginx.php';

use Tests\{Client, Fpm, HubProcess, Nginx};

use function Tests\{check, eventually, same, test};

// The hub asks the pool whose workers wait for the hub: a circle in which neither may wait for ever.
$fpm = new Fpm(children: 4);
$nginx = new Nginx($fpm);
$nginx->script('flood.php', <<<'PHP'
    $answered = [];
    for ($i = 0; $i < 500; $i++) {
        try {
            Realtime\publish('flood', "$_GET[writer] $i");
            $answered[] = "$_GET[writer] $i";
        } catch (Realtime\Exception\Unavailable | Realtime\Exception\Timeout) {
            // A request waits a second for the hub, and no longer.
        }
    }
    echo json_encode($answered);
    PHP);
$nginx->script('end.php', "Realtime\\publish('flood', 'the end'); echo json_encode('the end');");
$nginx->script('may.php', <<<'PHP'
    ['channel' => $channel] = json_decode(file_get_contents('php://input'), true);
    echo json_encode(['allowed' => !str_contains($channel, 'secret')]);
    PHP);

test('fpm: four workers that publish and wait, and 200 subscriptions that wait for a worker, all come to an end', function () use ($fpm, $nginx) {
    $hub = new HubProcess([
        'channels' => [['match' => 'asked-*', 'access' => 'callback']],
        'auth' => ['callback' => ['fastcgi' => ['socket' => $fpm->socket(), 'script' => "$nginx->root/may.php"], 'max_in_flight' => 3, 'timeout_ms' => 60_000]],
    ]);
    $finish = function ($request) use ($nginx): array {
        [$status, $body] = $nginx->finish($request);
        same(200, $status);
        return json_decode($body, flags: JSON_THROW_ON_ERROR);
    };
    $reader = Client::subscribed($hub->url, 'flood');
    $clients = array_map(fn () => new Client($hub->url), range(0, 199));
    $floods = array_map(fn (int $writer) => $nginx->begin("/flood.php?writer=$writer"), range(0, 3));
    foreach ($clients as $number => $client) {
        $client->send(['action' => 'subscribe', 'channel' => ($number % 2 ? 'asked-' : 'asked-secret-') . $number, 'id' => $number]);
    }
    $answered = array_merge(...array_map($finish, $floods));
    check($answered !== [], 'no publication was answered');
    // A worker that has waited in vain pauses for a second.
    eventually(fn () => json_decode($nginx->get('/end.php')[1]) === 'the end', 'the end is published');
    for ($heard = [], $last = []; ($text = $reader->next()['data']) !== 'the end'; $heard[] = $text) {
        [$writer, $number] = explode(' ', $text);
        check((int) $number > ($last[$writer] ?? -1), "$text behind {$last[$writer]}");
        $last[$writer] = (int) $number;
    }
    same([], array_values(array_diff($answered, $heard)), 'what was answered and not heard');
    foreach ($clients as $number => $client) {
        $answer = $client->next($number % 2 ? 'subscribed' : 'error');
        same([$number, $number % 2 ? null : 'unauthorized'], [$answer['id'], $answer['code'] ?? null]);
    }
    // Nobody holds a worker any more: all four can be had at once.
    array_map($finish, array_map(fn (int $writer) => $nginx->begin("/flood.php?writer=$writer"), range(0, 3)));
    check($hub->stop(), $hub->said());
});
