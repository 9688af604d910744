<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

/** TERM and INT are noted, for a command that ends once its turn is over. */
trait EndsOnSignals
{
    private bool $stop = false;

    private function endOnSignals(): void
    {
        if (function_exists('pcntl_async_signals')) {
            pcntl_async_signals(true);
            foreach ([SIGTERM, SIGINT] as $signal) {
                pcntl_signal($signal, function (): void {
                    $this->stop = true;
                });
            }
        }
    }
}
