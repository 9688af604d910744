<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use function Tests\{check, eventually, same, test};

const SUBSCRIBERS = 200;
const BROADCASTS = 20_000;

/** Reads as many connections at once as it is told, and reports what came on each. */
const SUBSCRIBER = <<<'PHP'
    $clients = $seen = $buffers = [];
    for ($i = 0; $i < $argv[2]; $i++) {
        $client = Tests\Client::subscribed($argv[1], 'load');
        $clients[$i] = $client->stream;
        $buffers[$i] = (fn () => $this->buffer)->call($client);
        $seen[$i] = 0;
        $keep[] = $client;
    }
    echo "ready\n";
    $order = $closed = 0;
    $finished = [];
    while (count($finished) < count($clients)) {
        $read = array_diff_key($clients, $finished);
        $none = null;
        if (!stream_select($read, $none, $none, 30)) {
            break;
        }
        foreach ($read as $i => $stream) {
            $part = fread($stream, 1 << 20);
            if ($part === '' && feof($stream)) {
                $finished[$i] = true;
                $closed++;
                continue;
            }
            $buffer = $buffers[$i] . $part;
            $at = 0;
            $length = strlen($buffer);
            // Small text frames only: two bytes of head, or four.
            while ($length - $at >= 2) {
                $size = ord($buffer[$at + 1]);
                $head = 2;
                if ($size === 126) {
                    if ($length - $at < 4) {
                        break;
                    }
                    $size = unpack('n', $buffer, $at + 2)[1];
                    $head = 4;
                }
                if ($length - $at < $head + $size) {
                    break;
                }
                $opcode = ord($buffer[$at]) & 15;
                $payload = substr($buffer, $at + $head, $size);
                $at += $head + $size;
                if ($opcode === 8) {
                    $closed++;
                    $finished[$i] = true;
                } elseif ($opcode === 1) {
                    $data = json_decode($payload, true)['data'];
                    if ($data === 'end') {
                        $finished[$i] = true;
                    } else {
                        $data === $seen[$i] || $order++;
                        $seen[$i]++;
                    }
                }
            }
            $buffers[$i] = substr($buffer, $at);
        }
    }
    echo json_encode(['least' => min($seen), 'most' => max($seen), 'order' => $order, 'closed' => $closed]);
    PHP;

test('20,000 broadcasts in a loop reach 200 healthy subscribers, or are reported, and close none', function () {
    // The subscribers answer no ping.
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'heartbeat' => ['ping_interval_ms' => 600_000]]);
    $code = "require '" . dirname(__DIR__) . "/support/harness.php'; " . SUBSCRIBER;
    $subscriber = new Tests\Process([PHP_BINARY, ...Tests\php_options(), '-r', $code, '--', $hub->url, (string) SUBSCRIBERS]);
    $subscriber->expect('/ready/');
    $accepted = $full = 0;
    while ($accepted < BROADCASTS) {
        try {
            Realtime\publish('load', $accepted);
            $accepted++;
        } catch (Realtime\Exception\QueueFull $e) {
            check($e->isRetryable(), 'QueueFull is worth another try');
            check(++$full < 1000, 'QueueFull again and again: ' . $e->getMessage());
        }
    }
    eventually(function () {
        try {
            return Realtime\publish('load', 'end');
        } catch (Realtime\Exception\QueueFull) {
            return null;
        }
    }, 'the last message is accepted');
    $result = json_decode(str_replace("ready\n", '', $subscriber->output()), true);
    same(['least' => BROADCASTS, 'most' => BROADCASTS, 'order' => 0, 'closed' => 0], $result);
    same(0, Realtime\stats()['closed_slow']);
    $hub->stop();
});
