<?php

declare(strict_types=1);

/*
 * Who is online: a page that shows everybody who has it open, live. Users come with a signed name, as an application with
 * a login would give it; here the page asks for a name, and this program signs it.
 */

require __DIR__ . '/../demo/PageServer.php';

$secret = bin2hex(random_bytes(16));
$hub = Realtime\start([
    'listen' => '127.0.0.1:' . ($_SERVER['HUB_PORT'] ?? '8080'),
    'allowed_origins' => ['*'],
    'apps' => [['name' => 'default', 'key' => 'online', 'secret' => $secret]],
]);
$page = new PageServer(str_replace('{{hub}}', (string) $hub->port, file_get_contents(__DIR__ . '/index.html')), '127.0.0.1', [(int) ($_SERVER['PAGE_PORT'] ?? 8000), 0]);

// What a login does in an application: it says who somebody is, once for one connection and channel.
$server = (new Realtime\Server())->on('message', function (Realtime\Connection $c, string $event, mixed $data) use ($secret): array|false {
    $name = is_string($data) ? trim($data) : '';
    if ($event !== 'sign in' || $name === '' || mb_strlen($name) > 40) {
        return false;
    }
    $user = json_encode(['user_id' => mb_strtolower($name), 'user_info' => ['name' => $name, 'since' => date('H:i')]], JSON_THROW_ON_ERROR);
    return ['channel_data' => $user, 'auth' => 'online:' . hash_hmac('sha256', "$c->id:presence-page:$user", $secret)];
});
$server->poll();

$stop = false;
pcntl_async_signals(true);
foreach ([SIGINT, SIGTERM] as $signal) {
    pcntl_signal($signal, function () use (&$stop): void {
        $stop = true;
    });
}
echo "Open http://127.0.0.1:$page->port/ in several windows. Ctrl-C ends it.\n";
while (!$stop) {
    $page->serveUntil(hrtime(true) + 10_000_000);
    $server->poll(10);
}
$online = Realtime\presence('presence-page');
printf("%d online: %s\n", count($online), implode(', ', array_column($online->users(), 'id')));
exit($hub->stop(2000) ? 0 : 1);
