<?php

declare(strict_types=1);

namespace App\Notifications;

use Illuminate\Notifications\Messages\BroadcastMessage;
use Illuminate\Notifications\Notification;

class ParcelOnItsWay extends Notification
{
    public function __construct(private string $item) {}

    public function via()
    {
        return ['broadcast'];
    }

    public function toBroadcast()
    {
        return new BroadcastMessage(['text' => "Your $this->item is on its way"]);
    }
}
