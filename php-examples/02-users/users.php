<?php

declare(strict_types=1);

require __DIR__ . '/../client.php';

$hub = Realtime\start(['listen' => '127.0.0.1:0']);
$laptop = new ExampleClient($hub->url, 'lobby');
$phone = new ExampleClient($hub->url, 'lobby');
$guest = new ExampleClient($hub->url, 'lobby');

$hub->setUser($laptop->socketId, 42, ['name' => 'Ada']);
$hub->setUser($phone->socketId, 42, ['name' => 'Ada']);

foreach (getChannelUsers('lobby') as $user) {
    echo "{$user['info']['name']} (user {$user['id']}) is here with {$user['connections']} connections\n";
}

broadcastToUser(42, 'only for you', as: 'private');
echo 'laptop: ', $laptop->receive(), "\n";
echo 'phone:  ', $phone->receive(), "\n";

// The connection that caused a message usually does not want it back.
broadcast('lobby', 'Ada typed this', options: ['except' => $laptop->socketId]);
echo 'phone:  ', $phone->receive(), "\n";
echo 'guest:  ', $guest->receive(), "\n";

echo 'closed: ', disconnectUser(42, 4001, 'signed out'), "\n";
echo 'laptop: ', $laptop->receive() === null ? 'gone' : 'still there', "\n";

$hub->stop();
