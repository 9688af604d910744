<?php

declare(strict_types=1);

namespace App\Notifications;

use Illuminate\Notifications\Messages\BroadcastMessage;
use Illuminate\Notifications\Notification;

class Hello extends Notification
{
    public function via()
    {
        return ['broadcast'];
    }

    public function toBroadcast()
    {
        return new BroadcastMessage(['text' => 'hello']);
    }
}
