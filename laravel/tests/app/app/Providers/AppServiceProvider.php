<?php

declare(strict_types=1);

namespace App\Providers;

use App\Listeners\WriteDown;
use App\User;
use Illuminate\Support\Facades\Auth;
use Illuminate\Support\Facades\Broadcast;
use Illuminate\Support\Facades\Event;
use Illuminate\Support\Facades\Route;
use Illuminate\Support\ServiceProvider;
use Realtime\Laravel\Events\HubEvent;

class AppServiceProvider extends ServiceProvider
{
    public function boot(): void
    {
        Auth::viaRequest('header', fn ($request) => User::named($request->header('X-User')));
        Auth::viaRequest('header-admin', fn ($request) => User::named($request->header('X-Admin'), 'admin'));
        Event::listen(HubEvent::class, WriteDown::class);
        Broadcast::routes();
        if (method_exists(Broadcast::getFacadeRoot(), 'userRoutes')) {
            Broadcast::userRoutes();
        }
        require base_path('routes/channels.php');
        Route::middleware('web')->group(base_path('routes/web.php'));
    }
}
