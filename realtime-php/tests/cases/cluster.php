<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\Unavailable;
use Tests\{Client, HubProcess, Process, RedisClusterProcess};

use function Tests\{contains, eventually, php, same, socket_path, test};

$redis = new RedisClusterProcess();

/** PHP code in a process without a hub on its host. */
function from_afar(RedisClusterProcess $redis, string $code): Process
{
    return php($code, [], ['REALTIME_MODE' => 'remote', 'REALTIME_BROKER__URL' => $redis->url]);
}

test('where no hub has been nothing is published to a cluster', function () use ($redis) {
    $said = from_afar($redis, "try { Realtime\\publish('a', 'x'); } catch (Throwable \$e) { echo \$e::class, ': ', \$e->getMessage(); }")->output();
    contains(Unavailable::class . ': no hub has been at redis the cluster of 127.0.0.1', $said);
});

$hub = new HubProcess([
    'socket' => socket_path(),
    // A slot that moves begins no new epoch, so that clients go on.
    'broker' => ['url' => $redis->url, 'fence' => false],
    'channels' => [['match' => 'h*', 'history' => ['size' => 100]]],
]);
eventually(
    fn () => from_afar($redis, "try { Realtime\\publish('warm up', 1); echo 'ok'; } catch (Throwable) {}")->output() === 'ok',
    'the hub has said what it goes by',
);

test('a process without a hub publishes to channels on every master, in one call and in batches', function () use ($hub, $redis) {
    $channels = array_map(fn ($i) => "h$i", range(0, 19));
    $client = Client::subscribed($hub->url, ...$channels);
    $process = from_afar($redis, <<<'PHP'
        $channels = array_map(fn ($i) => "h$i", range(0, 19));
        $receipts = Realtime\publish($channels, ['hello' => 'Zoë'], 'greeting');
        echo implode(' ', array_map(fn ($receipt) => $receipt->offset, $receipts)), "\n";
        Realtime\batch(function () use ($channels) {
            foreach ($channels as $channel) {
                broadcast($channel, 2);
                broadcast($channel, 3);
            }
        });
        broadcast($channels[0], 4, options: ['id' => 'once']);
        broadcast($channels[0], 4, options: ['id' => 'once']);
        echo json_encode(array_map(fn ($channel) => array_column(Realtime\history($channel)['messages'], 'data'), $channels));
        PHP);
    [$offsets, $histories] = explode("\n", $process->output());
    same(implode(' ', array_fill(0, 20, 1)), $offsets);
    $got = [];
    for ($i = 0; $i < 61; $i++) {
        $message = $client->next();
        $got[$message['channel']][] = $message['data'];
    }
    foreach ($channels as $at => $channel) {
        $expected = [['hello' => 'Zoë'], 2, 3, ...($at ? [] : [4])];
        same($expected, $got[$channel]);
        same($expected, json_decode($histories, true)[$at]);
    }
});

test('a slot that moves to another master is followed', function () use ($hub, $redis) {
    $client = Client::subscribed($hub->url, 'hmoved');
    $process = from_afar($redis, 'while (($line = fgets(STDIN)) !== false) { echo "at ", Realtime\publish("hmoved", trim($line))->offset, ".\n"; }');
    foreach ([[0, 1], [1, 0], [0, 1]] as $round => [$from, $to]) {
        $redis->move('realtime:{hmoved}:meta', $from, $to);
        $process->write("$round\n");
        $process->expect('~at ' . ($round + 1) . '\.~');
        same("$round", $client->next()['data']);
    }
});

$hub->stop(2000);
