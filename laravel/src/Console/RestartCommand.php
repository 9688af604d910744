<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Console\Command;

/** Asks running hubs and workers to end, so that their supervisor starts them with the new code and configuration. */
class RestartCommand extends Command
{
    protected $signature = 'realtime:restart';

    protected $description = 'Ask realtime:serve and realtime:listen to stop, so that a supervisor starts them again';

    public function handle(): int
    {
        RestartSignal::send($this->laravel['cache.store']);
        $this->info('Restart asked for.');

        return 0;
    }
}
