<?php

declare(strict_types=1);

namespace App\Listeners;

use Realtime\Laravel\Events\HubEvent;
use Realtime\Laravel\Events\MessageReceived;
use RuntimeException;

/** Writes a line for everything that happens on the hub, and does what a client's message says. */
class WriteDown
{
    public function handle(HubEvent $event): void
    {
        $this->write(['event' => class_basename($event)] + array_diff_key(get_object_vars($event), ['event' => 0]) + ['name' => $event->event ?? null]);
        match ($event instanceof MessageReceived ? $event->event : '') {
            'throw' => throw new RuntimeException('there is no such order'),
            'die' => posix_kill(getmypid(), SIGKILL),
            'wait' => $this->wait(),
            default => null,
        };
    }

    private function wait(): void
    {
        while (!is_file(base_path('go'))) {
            usleep(1000);
        }
        $this->write(['event' => 'waited']);
    }

    private function write(array $line): void
    {
        file_put_contents(base_path('heard'), json_encode($line, JSON_THROW_ON_ERROR) . "\n", FILE_APPEND);
    }
}
