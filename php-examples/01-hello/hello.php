<?php

declare(strict_types=1);

require __DIR__ . '/../client.php';

// Port 0 takes a free one; without it the hub listens on 127.0.0.1:8080.
$hub = Realtime\start(['listen' => '127.0.0.1:0']);
$client = new ExampleClient($hub->url, 'news');

broadcast('news', ['title' => 'Hello', 'rating' => 5.0]);
broadcast('news', 'plain text stays plain text', as: 'note');

echo $client->receive(), "\n";
echo $client->receive(), "\n";

$hub->stop();
