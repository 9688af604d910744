<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\ConfigError;
use Tests\{Client, HubProcess};

use function Tests\{check, contains, free_port, php, same, test, throws};

const SECRET = '0123456789abcdef0123456789abcdef';

/** A certificate for localhost that trusts itself, and its key. */
function certified(): array
{
    $place = getenv('TEST_DIRECTORY') . '/' . bin2hex(random_bytes(4));
    exec("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=app -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout $place.key -out $place.crt 2>&1", $said, $code);
    same(0, $code, implode("\n", $said));
    return ["$place.crt", "$place.key"];
}

/** A hub over TLS; the port of its bus. */
function hub(array $certified, ?int $port = null): array
{
    $port ??= free_port();
    return [new HubProcess(['socket' => "tls://127.0.0.1:$port", 'secret' => SECRET, 'socket_cert' => $certified[0], 'socket_key' => $certified[1]]), $port];
}

/** A program of another container. */
function elsewhere(string $code, string $address, string $ca): Tests\Process
{
    return php($code, ['-d', 'realtime.secret=' . SECRET, '-d', "realtime.socket_ca=$ca"], ['REALTIME_SOCKET' => $address]);
}

test('what a program in another container broadcasts over TLS reaches clients, in order, and its questions are answered', function () {
    $certified = certified();
    [$hub, $port] = hub($certified);
    $client = Client::subscribed($hub->url, 'a');
    $code = <<<'PHP'
        for ($i = 0; $i < 1000; $i++) broadcast('a', (string) $i);
        Realtime\batch(function () { for ($i = 1000; $i < 2000; $i++) broadcast('a', (string) $i); });
        same(2001, Realtime\publish('a', '2000')->offset);
        same([['name' => 'a', 'subscribers' => 1]], Realtime\channels());
        echo Realtime\stats()['published'];
        PHP;
    same('2001', elsewhere($code, "tls://localhost:$port", $certified[0])->output());
    for ($i = 0; $i <= 2000; $i++) {
        same((string) $i, $client->next()['data']);
    }
    $hub->stop();
});

test('a hub whose certificate is not trusted, or is for another name, is an outage that says why', function () {
    [$own, $other] = [certified(), certified()];
    [$hub, $port] = hub($own);
    $throws = fn (string $text) => "broadcast('a', 'x'); throws(Realtime\\Exception\\Unavailable::class, '$text', fn () => Realtime\\publish('a', 'x'));";
    elsewhere($throws('signed by nobody that is trusted here'), "tls://localhost:$port", $other[0])->output();
    elsewhere($throws('is for another name'), "tls://127.0.0.1:$port", $own[0])->output();
    elsewhere($throws('`socket_ca`: cannot read `/nowhere.pem`'), "tls://localhost:$port", '/nowhere.pem')->output();
    elsewhere($throws('tls://'), "tcp://localhost:$port", $own[0])->output();
    same('0', elsewhere("echo Realtime\\stats()['published'];", "tls://localhost:$port", $own[0])->output());
    $hub->stop();
});

test('a hub over TLS needs a certificate and its key', function () {
    [$own, $other] = [certified(), certified()];
    $start = fn (array $settings) => fn () => Realtime\start(['listen' => '127.0.0.1:0', 'socket' => 'tls://127.0.0.1:0', 'secret' => SECRET] + $settings);
    throws(ConfigError::class, '`socket_cert`', $start([]));
    throws(ConfigError::class, 'cannot read `/nowhere.pem`', $start(['socket_cert' => $own[0], 'socket_key' => '/nowhere.pem']));
    throws(ConfigError::class, 'is not the key of', $start(['socket_cert' => $own[0], 'socket_key' => $other[1]]));
});

test('a hub that was started anew is reached within the next call over TLS', function () {
    $certified = certified();
    [$hub, $port] = hub($certified);
    $writer = elsewhere("while ((\$line = fgets(STDIN)) !== false) { broadcast('a', trim(\$line)); echo \"sent\\n\"; }", "tls://localhost:$port", $certified[0]);
    $client = Client::subscribed($hub->url, 'a');
    $writer->write("first\n");
    same('first', $client->next()['data']);
    foreach ([SIGTERM, SIGKILL] as $signal) {
        $hub->signal($signal);
        $hub->wait();
        [$hub] = hub($certified, $port);
        $client = Client::subscribed($hub->url, 'a');
        $writer->write("after $signal\n");
        same("after $signal", $client->next()['data']);
    }
    $hub->stop();
});
