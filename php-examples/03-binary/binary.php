<?php

declare(strict_types=1);

require __DIR__ . '/../client.php';

$hub = Realtime\start(['listen' => '127.0.0.1:0']);
$client = new ExampleClient($hub->url, 'camera');
$picture = "\x89PNG\r\n\x1a\n" . random_bytes(1000);

try {
    broadcast('camera', $picture);
} catch (Realtime\Exception\InvalidMessage $e) {
    echo 'refused: ', $e->getMessage(), "\n";
}

broadcast('camera', $picture, as: 'frame', options: ['binary' => true]);
[$head, $body] = explode("\n", $client->receive(), 2);
echo $head, ' and ', strlen($body), ' bytes, ', $body === $picture ? 'the same' : 'others', "\n";

$stored = '{"width":640,"height":480}';
broadcast('camera', $stored, as: 'size', options: ['json' => true]);
echo $client->receive(), "\n";

$hub->stop();
