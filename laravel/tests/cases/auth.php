<?php

declare(strict_types=1);

require __DIR__ . '/../support/laravel.php';

use App\User;
use Illuminate\Support\Facades\Broadcast;
use Realtime\Laravel\Broadcasting\Signer;
use Tests\Client;
use Tests\Hub;

use function Tests\app_with;
use function Tests\check;
use function Tests\request;
use function Tests\same;
use function Tests\test;
use function Tests\throws;
use function Tests\with_program;

/** Status and decoded body of the answer to a client that wants to join. */
function ask($app, string $channel, string $socket = '1234.1234', array $headers = ['X-User' => '7'], string $path = '/broadcasting/auth'): array
{
    $response = request($app, 'POST', $path, ['channel_name' => $channel, 'socket_id' => $socket], $headers);

    return [$response->getStatusCode(), json_decode((string) $response->getContent(), true)];
}

function signature(string $text): string
{
    return Tests\KEY . ':' . hash_hmac('sha256', $text, Tests\SECRET);
}

test('signatures are those of the protocol\'s published vectors', function () {
    $signer = new Signer(Tests\KEY, Tests\SECRET);
    $hex = fn (array $answer) => substr($answer['auth'], strlen(Tests\KEY) + 1);
    same('58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4', $hex($signer->channel('1234.1234', 'private-foobar')));
    same('31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80', $hex($signer->channel('1234.1234', 'presence-foobar', '{"user_id":10,"user_info":{"name":"Mr. Channels"}}')));
    same('4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba', $hex($signer->user('1234.1234', '{"id":"12345"}')));
    same('e6a18892d037c5d5e76a2265df4f086ffc38631605530dfd214aa5bff495f533', $hex($signer->channel('1234.1234', 'private-encrypted-foobar')));
});

$app = app_with();

test('a private channel: the user is signed into channel_data', function () use ($app) {
    $data = '{"user_id":"7"}';
    same([200, ['auth' => signature("1234.1234:private-orders.7:$data"), 'channel_data' => $data]], ask($app, 'private-orders.7'));
});

test('sign_user = false gives the plain signature of Pusher\'s driver', function () {
    $app = app_with(['realtime.sign_user' => false]);
    same([200, ['auth' => signature('1234.1234:private-orders.7')]], ask($app, 'private-orders.7'));
});

test('a presence channel: id as text, info as the callback gave it', function () use ($app) {
    $data = '{"user_id":"7","user_info":{"name":"User 7"}}';
    same([200, ['auth' => signature("1234.1234:presence-room.1:$data"), 'channel_data' => $data]], ask($app, 'presence-room.1'));
    same('{"user_id":"7","user_info":true}', ask($app, 'presence-lobby')[1]['channel_data']);
});

test('an encrypted channel: the shared secret comes with the signature', function () use ($app) {
    [$status, $answer] = ask($app, 'private-encrypted-orders.7');
    same([200, base64_encode(hash('sha256', 'private-encrypted-orders.7' . base64_decode(Tests\MASTER_KEY), true))], [$status, $answer['shared_secret']]);
});

test('who may not join gets 403', function () use ($app) {
    foreach ([['private-orders.8'], ['private-nothing'], ['presence-nothing'], ['news'], ['']] as [$channel]) {
        same(403, ask($app, $channel)[0], "$channel:");
    }
    same(403, ask($app, 'private-orders.7', headers: [])[0], 'a guest:');
});

test('a guard of the channel\'s own is asked', function () use ($app) {
    same(403, ask($app, 'private-admin')[0]);
    [$status, $answer] = ask($app, 'private-admin', headers: ['X-Admin' => '9']);
    same([200, '{"user_id":"9"}'], [$status, $answer['channel_data'] ?? null]);
});

test('what could make one signature pass for another is refused', function () use ($app) {
    // "1.2:private-orders.8" + ":" + "private-orders.7" would be the text for a presence-like join of orders.8.
    foreach (['1.2:private-orders.8', '1.2::user', '1', 'a.b', '1.2 ', "1.2\n", '', '18446744073709551616.1'] as $socket) {
        same(403, ask($app, 'private-orders.7', $socket)[0], "socket $socket:");
    }
    same(200, ask($app, 'private-orders.7', '18446744073709551615.18446744073709551615')[0]);
    same(403, ask($app, 'private-orders.7:{"user_id":"8"}')[0]);
    same(403, ask($app, "private-orders.7\0")[0]);
    $response = request($app, 'POST', '/broadcasting/auth', ['channel_name' => ['private-orders.7'], 'socket_id' => '1.2'], ['X-User' => '7']);
    same(403, $response->getStatusCode(), 'a list in place of a name:');
});

test('a name longer than a hub takes is refused', function () use ($app) {
    Broadcast::channel('long.{x}', fn () => true);
    $name = fn (int $bytes) => str_pad('private-long.', $bytes, 'x');
    same([200, 200, 403], [ask($app, $name(199))[0], ask($app, $name(200))[0], ask($app, $name(201))[0]]);
});

test('without key and secret the answer is an error, not a signature of nothing', function () {
    $app = app_with(['realtime.app' => ['id' => null, 'key' => null, 'secret' => null]]);
    same(500, ask($app, 'private-orders.7')[0]);
    check(App\Exceptions\Handler::$reported !== [] && str_contains(end(App\Exceptions\Handler::$reported)->getMessage(), 'realtime:install'), 'the error says what to do');
});

test('a JSONP answer is given only where it was asked for in the configuration', function () {
    $ask = fn ($app) => request($app, 'GET', '/broadcasting/auth', ['channel_name' => 'private-orders.7', 'socket_id' => '1.2', 'callback' => 'cb'], ['X-User' => '7'])->getContent();
    check(str_starts_with($ask(app_with()), '{'), 'plain JSON');
    check(str_contains($ask(app_with(['broadcasting.connections.realtime' => ['driver' => 'realtime', 'jsonp' => true]])), 'cb({'), 'JSONP');
});

test('user authentication names the request\'s user, or whom the callback names', function () use ($app) {
    $driver = Broadcast::connection();
    $request = Illuminate\Http\Request::create('/', 'POST', ['socket_id' => '1234.1234']);
    $request->setUserResolver(fn () => User::named('7'));
    same(['auth' => signature('1234.1234::user::{"id":"7"}'), 'user_data' => '{"id":"7"}'], $driver->resolveAuthenticatedUser($request));
    $driver->resolveAuthenticatedUserUsing(fn ($request) => ['id' => 'anna', 'user_info' => ['name' => 'Anna']]);
    same('{"id":"anna","user_info":{"name":"Anna"}}', $driver->resolveAuthenticatedUser($request)['user_data']);
    $driver->resolveAuthenticatedUserUsing(fn ($request) => null);
    same(null, $driver->resolveAuthenticatedUser($request));
});

if (method_exists(Illuminate\Broadcasting\BroadcastManager::class, 'userRoutes')) {
    test('the route for user authentication answers', function () {
        $app = app_with();
        $ask = fn (array $headers) => ask($app, '', '1234.1234', $headers, '/broadcasting/user-auth');
        same([200, ['auth' => signature('1234.1234::user::{"id":"7"}'), 'user_data' => '{"id":"7"}']], $ask(['X-User' => '7']));
        same(403, $ask([])[0]);
    });
}

with_program(function (Hub $hub) use ($app) {
    test('a hub takes these signatures, and refuses them for another connection, channel or user', function () use ($app, $hub) {
        $client = new Client($hub->url);
        $join = function (string $channel, array $answer) use ($client) {
            $client->send(['action' => 'subscribe', 'channel' => $channel, 'id' => 1] + $answer);
            do {
                [, $payload] = $client->read();
                $message = json_decode($payload, true);
            } while (!in_array($message['type'], ['subscribed', 'error'], true));

            return $message['type'];
        };
        $answer = ask($app, 'private-orders.7', $client->id())[1];
        same('error', $join('private-orders.8', $answer), 'another channel:');
        same('error', $join('private-orders.7', ['channel_data' => '{"user_id":"8"}'] + $answer), 'another user:');
        same('error', $join('private-orders.7', ask($app, 'private-orders.7', '1.2')[1]), 'another connection:');
        same('error', $join('private-orders.7', []), 'no signature:');
        same('subscribed', $join('private-orders.7', $answer));
        same('subscribed', $join('presence-room.1', ask($app, 'presence-room.1', $client->id())[1]));
    });
});
