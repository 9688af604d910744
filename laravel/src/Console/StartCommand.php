<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

/** `realtime:serve` under the name that Reverb's users know. */
class StartCommand extends ServeCommand
{
    protected $signature = 'realtime:start
        {--listen= : Address and port for clients, 127.0.0.1:8080 for example}
        {--binary=realtime : The program, where the extension is missing}';

    protected $description = 'The same as realtime:serve';
}
